/* Counts the bytes that torch's CPU allocator holds, on whatever thread it takes and frees them.
 *
 * torch takes its tensors' memory with posix_memalign, from its library c10. Preloaded before libc, this keeps the size of each
 * such block and the most that was held at once. What others take, such as the scratch that oneDNN keeps for good, is not
 * counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>

#define SLOTS (1u << 22)

static struct { void *block; size_t bytes; } held[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long now_bytes, most_bytes;
static uintptr_t c10_begins, c10_ends;
static void (*libc_free)(void *);

static uint32_t slot_of(const void *block) { return (uint32_t)(((uintptr_t)block >> 6) * 2654435761u) & (SLOTS - 1); }

int posix_memalign(void **out, size_t alignment, size_t bytes) {
    static int (*libc_memalign)(void **, size_t, size_t);
    if (!libc_memalign) libc_memalign = (int (*)(void **, size_t, size_t))dlsym(RTLD_NEXT, "posix_memalign");
    int error = libc_memalign(out, alignment, bytes);
    uintptr_t caller = (uintptr_t)__builtin_return_address(0);
    if (error || caller < c10_begins || caller >= c10_ends) return error;
    pthread_mutex_lock(&lock);
    uint32_t slot = slot_of(*out);
    while (held[slot].block) slot = (slot + 1) & (SLOTS - 1);
    held[slot].block = *out;
    held[slot].bytes = bytes;
    now_bytes += (long)bytes;
    if (now_bytes > most_bytes) most_bytes = now_bytes;
    pthread_mutex_unlock(&lock);
    return 0;
}

/* Takes a block out of the table, and moves up those that were put behind it because its slot was taken. */
static void forget(const void *block) {
    uint32_t slot = slot_of(block);
    while (held[slot].block && held[slot].block != block) slot = (slot + 1) & (SLOTS - 1);
    if (!held[slot].block) return;
    now_bytes -= (long)held[slot].bytes;
    for (uint32_t next = slot;;) {
        held[slot].block = NULL;
        do {
            next = (next + 1) & (SLOTS - 1);
            if (!held[next].block) return;
        } while (((next - slot_of(held[next].block)) & (SLOTS - 1)) < ((next - slot) & (SLOTS - 1)));
        held[slot] = held[next];
        slot = next;
    }
}

void free(void *block) {
    if (!libc_free) libc_free = (void (*)(void *))dlsym(RTLD_NEXT, "free");
    if (!block) return;
    pthread_mutex_lock(&lock);
    forget(block);
    pthread_mutex_unlock(&lock);
    libc_free(block);
}

void allocations_count(unsigned long begins, unsigned long ends) { c10_begins = begins; c10_ends = ends; }
long allocations_now(void) { return now_bytes; }
long allocations_most(void) { return most_bytes; }
void allocations_restart(void) { most_bytes = now_bytes; }
