/* The doorbell of a ring: a consumer that sleeps on the word `tail` is always woken.
 *
 * One producer, one consumer, in two processes that share nothing but memory
 * (src/channel/sender.c, worker_end.c). Writes go through a store buffer for each side (x86 TSO):
 * the other side sees them when the buffer drains, which only a fence waits for.
 *
 * The consumer counts `sleeping` up to odd before it sleeps and to even after. The producer wakes it
 * once for each such epoch: it calls until a call has found the consumer asleep, and only if the
 * consumer has not yet consumed all that is published. If any call counted, one might come between
 * the consumer's last look and its sleep, wake nobody, and use up the epoch, so that the next item
 * wakes nobody either. Without that last look the wake may belong to an item that the consumer has
 * consumed already: it sleeps on in the same epoch, which is used up.
 *
 * A lost wake-up shows as a deadlock: the consumer sleeps, the producer is through. run checks
 * that each of these fails:
 *   NO_PRODUCER_FENCE, NO_CONSUMER_FENCE  a fence left out
 *   ANY_CALL_COUNTS  one call uses up the epoch, also if it woke nobody
 *   NO_HEAD_CHECK    wakes whenever the epoch is odd and new, whatever is consumed
 *   NO_COMPARE       a futex that sleeps without comparing the word
 * and that this holds: WAKE_ALWAYS, which wakes at each item while the epoch is odd.
 */
#define ITEMS 4

mtype = {HEAD, SLEEPING};

/* Memory as the other side sees it. */
byte tail;     /* by the producer: items published */
byte head;     /* by the consumer: items consumed */
byte sleeping; /* by the consumer: odd while it sleeps or is about to */

bool asleep; /* the kernel's queue of who waits on tail */

byte wakes;    /* ghosts: calls that woke */
bool spurious; /* the sleep ended for no reason, once */

chan producer_buffer = [2] of {byte};
chan consumer_buffer = [3] of {mtype, byte};

active proctype producer_drain() {
end:
    do
    :: atomic { producer_buffer?tail }
    od
}

active proctype consumer_drain() {
end:
    do
    :: atomic { consumer_buffer?HEAD, head }
    :: atomic { consumer_buffer?SLEEPING, sleeping }
    od
}

active proctype producer() {
    byte published, epoch, seen_head, woken_epoch;

    do
    :: published == ITEMS -> break
    :: else ->
        published++;
        producer_buffer!published; /* store-release */
#ifndef NO_PRODUCER_FENCE
        empty(producer_buffer); /* seq_cst fence */
#endif
        epoch = sleeping; /* load-acquire: the head is the one of this epoch or newer */
        seen_head = head;
        if
#if defined(WAKE_ALWAYS)
        :: epoch % 2 == 1 ->
#elif defined(NO_HEAD_CHECK) || defined(ANY_CALL_COUNTS) /* a used-up epoch shows at once */
        :: epoch % 2 == 1 && epoch != woken_epoch ->
#else
        :: epoch % 2 == 1 && epoch != woken_epoch && seen_head != published ->
#endif
            atomic { /* FUTEX_WAKE, which returns whether it woke */
                if
#ifdef ANY_CALL_COUNTS
                :: true ->
#else
                :: asleep ->
#endif
                    woken_epoch = epoch;
                    wakes = wakes + asleep
                :: else
                fi;
                asleep = false
            }
        :: else
        fi
    od;
#ifndef WAKE_ALWAYS
    assert(wakes <= (woken_epoch + 1) / 2) /* at most one for each sleep */
#endif
}

active proctype consumer() {
    byte consumed, seen, epoch;

    do
    :: consumed == ITEMS -> break
    :: else ->
        seen = tail; /* load-acquire */
        if
        :: seen != consumed ->
            consumed++; /* one item a time, as tasks are */
            consumer_buffer!HEAD, consumed
        :: else ->
            epoch++;
            consumer_buffer!SLEEPING, epoch; /* odd: about to sleep */
#ifndef NO_CONSUMER_FENCE
            empty(consumer_buffer); /* seq_cst fence */
#endif
            do
            :: tail != seen -> break
            :: tail == seen ->
#ifdef NO_COMPARE
                asleep = true;
#else
                atomic { asleep = (tail == seen) }; /* FUTEX_WAIT compares under its lock */
#endif
                if
                :: !asleep
                :: atomic { asleep && !spurious -> spurious = true; asleep = false }
                fi
            od;
            epoch++;
            consumer_buffer!SLEEPING, epoch /* even: awake; no fence, a late wake is harmless */
        fi
    od
}
