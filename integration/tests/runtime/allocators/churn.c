/* Memory that is kept, and memory that comes and goes, of whatever C library this is linked with:
 * "churn PORT" answers each request, after four threads have allocated, grown and freed blocks, and
 * some of the kept ones were replaced, by a checksum of all that is kept, and by how many bytes were
 * not what they have to be. Every answer follows from how many there have been. */

#include <arpa/inet.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { THREADS = 4, SLOTS = 64, ROUNDS = 1200, KEPT = 1500, REPLACED = 150 };

struct block {
	unsigned char *bytes;
	size_t length;
	uint64_t seed;
};

/* A thread's blocks, its random numbers, and what it found wrong. */
struct work {
	struct block slots[SLOTS];
	uint64_t random;
	unsigned long wrong;
};

static struct block kept[KEPT];

/* glibc and jemalloc have these, musl has not. */
extern int malloc_trim(size_t) __attribute__((weak));

static uint64_t draw(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state * 0x2545f4914f6cdd1d;
}

static unsigned char pattern(uint64_t seed, size_t at)
{
	return seed + at * 31 + (at >> 12);
}

static void fill(struct block *block, size_t from)
{
	for (size_t i = from; i < block->length; i++)
		block->bytes[i] = pattern(block->seed, i);
}

static unsigned long check(const struct block *block)
{
	unsigned long wrong = 0;
	for (size_t i = 0; i < block->length; i++)
		wrong += block->bytes[i] != pattern(block->seed, i);
	return wrong;
}

static size_t size(uint64_t random)
{
	switch (random % 16) {
	case 0: return 1 + random / 16 % (300 << 10);
	case 1: case 2: case 3: return 1 + random / 16 % (24 << 10);
	default: return 1 + random / 16 % 600;
	}
}

/* Every other block is one that has to be zeroes. */
static unsigned long allocate(struct block *block, uint64_t random)
{
	unsigned long wrong = 0;
	block->length = size(random);
	block->seed = random >> 32;
	if (random >> 40 & 1) {
		block->bytes = calloc(block->length, 1);
		for (size_t i = 0; block->bytes && i < block->length; i++)
			wrong += block->bytes[i] != 0;
	} else {
		block->bytes = malloc(block->length);
	}
	if (!block->bytes)
		abort();
	fill(block, 0);
	return wrong;
}

static unsigned long grow(struct block *block, uint64_t random)
{
	size_t old = block->length;
	block->length += size(random);
	block->bytes = realloc(block->bytes, block->length);
	if (!block->bytes)
		abort();
	fill(block, old);
	return check(block);
}

static unsigned long release(struct block *block)
{
	unsigned long wrong = check(block);
	free(block->bytes);
	block->bytes = NULL;
	return wrong;
}

static void *churn(void *argument)
{
	struct work *work = argument;
	for (int round = 0; round < ROUNDS; round++) {
		uint64_t random = draw(&work->random);
		struct block *block = &work->slots[random % SLOTS];
		random = draw(&work->random);
		if (!block->bytes)
			work->wrong += allocate(block, random);
		else if (random % 4 == 0)
			work->wrong += grow(block, random / 4);
		else
			work->wrong += release(block);
	}
	for (int i = 0; i < SLOTS; i++)
		if (work->slots[i].bytes)
			work->wrong += release(&work->slots[i]);
	return NULL;
}

static unsigned long churn_all(uint64_t seed)
{
	static struct work work[THREADS];
	pthread_t threads[THREADS];
	unsigned long wrong = 0;
	for (int i = 0; i < THREADS; i++) {
		memset(&work[i], 0, sizeof work[i]);
		work[i].random = seed * THREADS + i + 1;
		if (pthread_create(&threads[i], NULL, churn, &work[i]))
			abort();
	}
	for (int i = 0; i < THREADS; i++) {
		pthread_join(threads[i], NULL);
		wrong += work[i].wrong;
	}
	return wrong;
}

static unsigned long replace_some(uint64_t seed)
{
	uint64_t random = seed + 99;
	unsigned long wrong = 0;
	for (int i = 0; i < REPLACED; i++) {
		struct block *block = &kept[draw(&random) % KEPT];
		wrong += release(block) + allocate(block, draw(&random));
	}
	return wrong;
}

static uint64_t sum(void)
{
	uint64_t sum = 14695981039346656037u;
	for (int i = 0; i < KEPT; i++)
		for (size_t at = 0; at < kept[i].length; at++)
			sum = (sum ^ kept[i].bytes[at]) * 1099511628211;
	return sum;
}

static void answer(int client)
{
	static unsigned long count;
	char request[2000], body[100], text[300];
	unsigned long wrong;
	if (read(client, request, sizeof request) < 0)
		return;
	count++;
	wrong = churn_all(count) + replace_some(count);
	if (malloc_trim)
		malloc_trim(0);
	for (int i = 0; i < KEPT; i++)
		wrong += check(&kept[i]);
	snprintf(body, sizeof body, "{\"count\": %lu, \"sum\": \"%016llx\", \"wrong\": %lu}", count,
		 (unsigned long long)sum(), wrong);
	snprintf(text, sizeof text,
		 "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s", strlen(body), body);
	if (write(client, text, strlen(text)) < 0)
		return;
}

int main(int count, char **arguments)
{
	struct sockaddr_in address = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_ANY) };
	int listener = socket(AF_INET, SOCK_STREAM, 0), yes = 1;
	uint64_t random = 1;
	if (count != 2)
		return 2;
	for (int i = 0; i < KEPT; i++)
		if (allocate(&kept[i], draw(&random)))
			abort();
	address.sin_port = htons(atoi(arguments[1]));
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
	if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
		return 1;
	for (;;) {
		int client = accept(listener, NULL, NULL);
		if (client < 0)
			return 1;
		answer(client);
		close(client);
	}
}
