/* report.h - the table: input, outcome, time, worker. */
#ifndef DOCUMENTS_REPORT_H
#define DOCUMENTS_REPORT_H

#include "job.h"

/* Prints the hostile inputs and a sample of the documents, or all of them. */
void report_print(const job *all, bool every_document);

#endif
