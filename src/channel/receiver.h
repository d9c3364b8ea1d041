/* The program's end of the up ring: reads what a worker wrote, and trusts none of it. The memory
 * may change under its eyes and hold anything; what comes out is either a well-formed end of a
 * task or the verdict that the worker is damaged. One thread at a time. */
#ifndef PEBBLE_CHANNEL_RECEIVER_H
#define PEBBLE_CHANNEL_RECEIVER_H

#include "channel/layout.h"
#include "core/future.h"

typedef struct channel_receiver {
    const channel_up *up;
    channel_down *down;
    uint32_t head;  /* of what has been read; given back by receiver_release() */
    bool in_record; /* header has been read */
    bool in_task;   /* a piece of a result has been read, its end has not */
    bool damaged;   /* for good */
    bool no_memory; /* the result does not fit: its bytes are dropped */
    result_record header;
    uint64_t sequence; /* of the result being read */
    uint64_t left;     /* payload bytes of the record still to come */
    uint64_t padding;  /* behind them */
    result_bytes result;
    size_t capacity;
} channel_receiver;

/* How a task ended, as the worker says. */
typedef struct receiver_end {
    uint64_t sequence;
    bool failed; /* result is the message, not terminated */
    bool no_memory;
    int code;
    uint64_t duration_ns;
    result_bytes result;
} receiver_end;

typedef enum receiver_status {
    RECEIVER_EMPTY,  /* nothing more to read now */
    RECEIVER_ENDED,  /* end is filled; the caller owns its result */
    RECEIVER_MORE,   /* a ring's worth was read in one call, and there may be more */
    RECEIVER_DAMAGED /* the worker wrote nonsense */
} receiver_status;

void receiver_init(channel_receiver *receiver, const channel_up *up, channel_down *down);
void receiver_fini(channel_receiver *receiver);

/* True if there is something to read. Any thread: a hint. */
bool receiver_has_data(const channel_receiver *receiver);

/* Reads on until a task has ended or there is nothing more. A worker may write as fast as this
 * reads, without end: one call reads about a ring's worth at most. */
receiver_status receiver_next(channel_receiver *receiver, receiver_end *end);

/* Gives the space of what was read back to the worker, and wakes it if it waits for it. */
void receiver_release(channel_receiver *receiver);

#endif
