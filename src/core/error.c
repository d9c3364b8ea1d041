#include "core/error.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#define MESSAGE_SIZE 512

static _Thread_local char last_message[MESSAGE_SIZE];

static const struct {
    const char *name;
    const char *text;
} errors[] = {
#define ERROR_ROW(name, text) {"PEBBLE_" #name, text},
    PEBBLE_ERRORS(ERROR_ROW)
#undef ERROR_ROW
};

static bool is_known(pebble_error error) {
    return (unsigned)error < sizeof errors / sizeof *errors;
}

const char *pebble_error_name(pebble_error error) {
    return is_known(error) ? errors[error].name : "PEBBLE_ERR_UNKNOWN";
}

const char *pebble_error_text(pebble_error error) {
    return is_known(error) ? errors[error].text : "unknown error";
}

const char *pebble_error_message(void) {
    return last_message;
}

pebble_error error_set(pebble_error error, const char *format, ...) {
    va_list args;
    va_start(args, format);
    vsnprintf(last_message, sizeof last_message, format, args);
    va_end(args);
    return error;
}

pebble_error error_set_system(int errno_value, const char *what) {
    char buffer[128];
    pebble_error error = errno_value == ENOMEM ? PEBBLE_ERR_NO_MEMORY : PEBBLE_ERR_SYSTEM;
    return error_set(error, "%s: %s", what,
                     strerror_r(errno_value, buffer, sizeof buffer));
}
