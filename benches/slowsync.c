/* A disk whose fsync takes longer: LD_PRELOAD=slowsync.so SLOWSYNC_US=5000 flowtally serve ...
 *
 *   cc -D_GNU_SOURCE -O2 -shared -fPIC -o slowsync.so slowsync.c
 */
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>

static void wait_a_while(void) {
    const char *us = getenv("SLOWSYNC_US");
    struct timespec t = {0, (us ? atol(us) : 0) * 1000};
    nanosleep(&t, NULL);
}

int fsync(int fd) {
    wait_a_while();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd);
}

int fdatasync(int fd) {
    wait_a_while();
    return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd);
}
