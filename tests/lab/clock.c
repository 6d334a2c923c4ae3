/*
 * A clock that is wrong by a fixed time: loaded before the C library, it moves the wall clock of one process and of
 * all that it starts. Monotonic clocks stay as they are, as on a machine whose time is set wrong.
 */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long long offset_us;

__attribute__((constructor)) static void read_offset(void)
{
	const char *text = getenv("DUPLEX_CLOCK_OFFSET_US");

	offset_us = text ? atoll(text) : 0;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
	int result = (int) syscall(SYS_clock_gettime, clock, now);

	if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
	{
		long long ns = now->tv_nsec + (offset_us % 1000000) * 1000;

		now->tv_sec += offset_us / 1000000 + (ns < 0 ? -1 : ns / 1000000000);
		now->tv_nsec = (ns % 1000000000 + 1000000000) % 1000000000;
	}
	return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone)
{
	struct timespec precise;

	(void) zone;
	if (clock_gettime(CLOCK_REALTIME, &precise) != 0)
		return -1;
	now->tv_sec = precise.tv_sec;
	now->tv_usec = precise.tv_nsec / 1000;
	return 0;
}

time_t time(time_t *result)
{
	struct timespec precise;

	if (clock_gettime(CLOCK_REALTIME, &precise) != 0)
		return (time_t) -1;
	if (result != NULL)
		*result = precise.tv_sec;
	return precise.tv_sec;
}
