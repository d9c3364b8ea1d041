/* The form of what goes to a worker process and comes back.
 *
 * To it: an input_header, then function_size bytes of the pickled function (the worker keeps those
 * that it has seen, by these bytes, where it may), then the payload: what the header's form says. A call's
 * payload may have buffers behind it (buffers.h).
 *
 * From it: a pickle, or records, and one last byte that tells which (result_form). It is the last
 * so that a result can be streamed while it is being pickled: if that fails half way, the error
 * follows what was already sent, with its place before the last byte.
 */
#ifndef PEBBLE_PYTHON_MESSAGE_H
#define PEBBLE_PYTHON_MESSAGE_H

#include <stdint.h>

typedef enum input_form {
    INPUT_ARGS,         /* the arguments as a tuple */
    INPUT_ARGS_KWARGS,  /* (args, kwargs) */
    INPUT_WHOLE,        /* (function, args, kwargs): function_size is 0 */
    INPUT_CHUNK,        /* a list: the only argument of each element */
    INPUT_CHUNK_TUPLES, /* a list: the arguments of each element as a tuple */
    INPUT_CHUNK_PIECES, /* for each element a piece_header and its arguments as a tuple */
} input_form;

typedef struct input_header {
    uint16_t form;
    uint16_t keep_function; /* the worker may keep it: it has no state of its own */
    uint32_t function_size;
    uint64_t count; /* of a chunk's elements, or of a call's buffers */
} input_header;

typedef enum result_form {
    RESULT_VALUE,       /* the pickled result */
    RESULT_VALUE_APART, /* the same, with buffers; before the last byte their count, 8 bytes */
    RESULT_ERROR,       /* an error record; before the last byte its place, 8 bytes */
    RESULT_LIST,        /* a chunk: a pickled list */
    RESULT_PIECES /* a chunk: for each element a piece_header and a pickle or error record */
} result_form;

typedef struct piece_header {
    uint32_t form; /* RESULT_VALUE or RESULT_ERROR */
    uint32_t unused;
    uint64_t size;
} piece_header;

/* An error record: this, the text of the traceback in UTF-8, the pickled exception. */
typedef struct error_header {
    uint64_t text_size;
    uint64_t exception_size;
} error_header;

#endif
