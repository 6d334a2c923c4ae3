/*
 * Another extension, as it might be: at_commit('sql') runs the statement in a pre-commit callback of its own. Callbacks
 * run in the reverse order of their registration; one that was registered before pg_duplex's writes after its flush.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"

PG_MODULE_MAGIC;

static char *statement = NULL;

static void
callback(XactEvent event, void *arg)
{
	char	   *sql = statement;

	if (event == XACT_EVENT_ABORT)
		statement = NULL;
	if (event != XACT_EVENT_PRE_COMMIT || sql == NULL)
		return;
	statement = NULL;
	SPI_connect();
	PushActiveSnapshot(GetTransactionSnapshot());
	if (SPI_execute(sql, false, 0) < 0)
		elog(ERROR, "statement at commit failed: %s", sql);
	PopActiveSnapshot();
	SPI_finish();
}

void
_PG_init(void)
{
	RegisterXactCallback(callback, NULL);
}

PG_FUNCTION_INFO_V1(at_commit);

Datum
at_commit(PG_FUNCTION_ARGS)
{
	char	   *sql = text_to_cstring(PG_GETARG_TEXT_PP(0));

	statement = sql[0] == '\0' ? NULL : MemoryContextStrdup(TopTransactionContext, sql);
	PG_RETURN_VOID();
}
