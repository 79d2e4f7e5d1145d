/* A load generator that is faster than the service: one thread a connection, bodies made on the fly.
 *
 *   cc -D_GNU_SOURCE -O2 -pthread -o blast blast.c -lm
 *   ./blast PORT WORKLOAD SECONDS [connections=8] [flows=1000] [edges=100000] [hours=1] [rate=0] [first_hour=1000]
 *
 * Workloads:
 *   fleet  Zipf-like over `edges` names, in `hours` hours, 98 % in the newest
 *   wide   uniform over `edges` names and `hours` hours
 *   new    every flow a name that has never been: the store only grows
 *   churn  new, and each minute of the run is an hour of its own
 *   march  fleet, and each second of the run is an hour of its own: hours pass as they do in years
 *   years  each of `edges` names once in each of `hours` hours, one hour after the other; it ends after the last
 *
 * rate: POSTs a second over all connections, 0 for as fast as they go. With a rate, latency counts from the moment at
 * which a POST was due, not from when it was sent: a pause of the service shows in all POSTs that fell into it.
 *
 * Prints flows a second, latency percentiles and the longest in ms, then each second's rate and longest (-v as last
 * argument), and what was acknowledged: flows, bytes_tx, bytes_rx. Those have to be what GET /hours adds up to, if every
 * answer was a 200.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static int port, conns = 8, flows = 1000, verbose;
static long edges = 100000, hours = 1, first_hour = 1000;
static double seconds, rate;
static const char *workload;
static double started;
static atomic_long next_new, due;
enum { BUCKETS = 4000, SECONDS_MAX = 7200 };
static atomic_long hist[BUCKETS], per_second[SECONDS_MAX], longest_us[SECONDS_MAX];
static atomic_long acked_flows, acked_tx, acked_rx, refused, broken;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + t.tv_nsec * 1e-9;
}
static uint64_t rnd(uint64_t *s) {
    *s ^= *s << 13, *s ^= *s >> 7, *s ^= *s << 17;
    return *s;
}
static char *num(char *p, uint64_t v) {
    char t[20];
    int n = 0;
    do t[n++] = '0' + v % 10; while (v /= 10);
    while (n) *p++ = t[--n];
    return p;
}
static char *str(char *p, const char *s) {
    size_t n = strlen(s);
    memcpy(p, s, n);
    return p + n;
}
/* A bucket is 2 % wide: 10 us to hours. */
static int bucket(double ms) {
    int b = ms <= 0.01 ? 0 : (int)(log(ms / 0.01) / log(1.02));
    return b < BUCKETS ? b : BUCKETS - 1;
}
static int dial(void) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int s = socket(AF_INET, SOCK_STREAM, 0), one = 1;
    setsockopt(s, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(s, (void *)&a, sizeof a)) { close(s); return -1; }
    return s;
}
static int send_all(int s, const char *p, size_t n) {
    while (n) {
        ssize_t k = send(s, p, n, MSG_NOSIGNAL);
        if (k <= 0) return -1;
        p += k, n -= k;
    }
    return 0;
}
static int status(int s) {
    static __thread char b[65536];
    size_t n = 0;
    for (;;) {
        ssize_t k = recv(s, b + n, sizeof b - 1 - n, 0);
        if (k <= 0) return -1;
        n += k, b[n] = 0;
        char *end = strstr(b, "\r\n\r\n");
        if (!end) continue;
        char *l = strcasestr(b, "content-length:");
        if (!l || n >= (size_t)(end + 4 - b) + strtoul(l + 15, 0, 10)) return atoi(b + 9);
    }
}
static void *run(void *arg) {
    uint64_t seed = 0x9E3779B97F4A7C15u * ((uintptr_t)arg + 1);
    char *body = malloc((size_t)flows * 200 + 256), *req = malloc((size_t)flows * 200 + 1024);
    int s = dial();
    while (now() - started < seconds) {
        double begin = now();
        if (rate > 0) {
            begin = started + atomic_fetch_add(&due, 1) / rate;
            if (begin - started >= seconds) break;
            double wait = begin - now();
            if (wait > 0) usleep(wait * 1e6);
        }
        long at_second = (long)(now() - started), tx_sum = 0, rx_sum = 0, first = 0;
        if (*workload == 'y' && (first = atomic_fetch_add(&next_new, flows)) >= edges * hours) break;
        char *p = body;
        *p++ = '[';
        for (int i = 0; i < flows; i++) {
            uint64_t r = rnd(&seed), k, tx = (r >> 20) % 100000, rx = (r >> 40) % 100000;
            long hour = first_hour;
            if (*workload == 'n') k = atomic_fetch_add(&next_new, 1), hour += k % hours;
            else if (*workload == 'c') k = atomic_fetch_add(&next_new, 1), hour += at_second / 60;
            else if (*workload == 'y') k = (first + i) % edges, hour += (first + i) / edges;
            else if (*workload == 'w') k = rnd(&seed) % edges, hour += r % hours;
            else {
                k = (uint64_t)(pow(edges, (rnd(&seed) >> 11) * 0x1p-53) - 1) % edges;
                hour += *workload == 'm' ? at_second : hours - 1 - (r % 50 == 0 && hours > 1);
            }
            if (i) *p++ = ',';
            p = str(p, "{\"src_app\": \"svc-"), p = num(p, k % 997), p = str(p, "\", \"dest_app\": \"svc-");
            p = num(p, k / 997), p = str(p, "\", \"vpc_id\": \"vpc-"), p = num(p, k % 7);
            p = str(p, "\", \"bytes_tx\": "), p = num(p, tx), p = str(p, ", \"bytes_rx\": "), p = num(p, rx);
            p = str(p, ", \"hour\": "), p = num(p, hour), *p++ = '}';
            tx_sum += tx, rx_sum += rx;
        }
        *p++ = ']';
        int head = sprintf(req, "POST /flows HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n", (size_t)(p - body));
        memcpy(req + head, body, p - body);
        if (rate <= 0) begin = now();
        int code = s < 0 || send_all(s, req, head + (p - body)) ? -1 : status(s);
        double end = now(), ms = (end - begin) * 1e3;
        atomic_fetch_add(&hist[bucket(ms)], 1);
        long second = (long)(end - started);
        if (second < SECONDS_MAX) {
            long us = ms * 1e3, old = longest_us[second];
            while (us > old && !atomic_compare_exchange_weak(&longest_us[second], &old, us)) ;
        }
        if (code == 200) {
            atomic_fetch_add(&acked_flows, flows), atomic_fetch_add(&acked_tx, tx_sum), atomic_fetch_add(&acked_rx, rx_sum);
            if (second < SECONDS_MAX) atomic_fetch_add(&per_second[second], flows);
        } else if (code > 0) atomic_fetch_add(&refused, 1), usleep(10000);
        else atomic_fetch_add(&broken, 1), close(s), usleep(100000), s = dial();
    }
    return 0;
}
int main(int argc, char **argv) {
    if (argc < 4) return fprintf(stderr, "usage: blast PORT fleet|wide|new|churn|march|years SECONDS [connections flows edges hours rate first_hour] [-v]\n"), 2;
    if (!strcmp(argv[argc - 1], "-v")) verbose = 1, argc--;
    port = atoi(argv[1]), workload = argv[2], seconds = atof(argv[3]);
    if (argc > 4) conns = atoi(argv[4]);
    if (argc > 5) flows = atoi(argv[5]);
    if (argc > 6) edges = atol(argv[6]);
    if (argc > 7) hours = atol(argv[7]);
    if (argc > 8) rate = atof(argv[8]);
    if (argc > 9) first_hour = atol(argv[9]);
    pthread_t t[4096];
    started = now();
    for (long i = 0; i < conns; i++) pthread_create(&t[i], 0, run, (void *)i);
    for (int i = 0; i < conns; i++) pthread_join(t[i], 0);
    double took = now() - started;
    long total = 0, at = 0, max = 0;
    for (int i = 0; i < BUCKETS; i++) total += hist[i];
    for (int i = 0; i < SECONDS_MAX; i++) if (longest_us[i] > max) max = longest_us[i];
    printf("flows_per_s: %.0f\n", acked_flows / took);
    double want[] = {.5, .99, .999};
    const char *name[] = {"p50_ms", "p99_ms", "p999_ms"};
    for (int w = 0, i = 0; w < 3; i++) {
        at += hist[i];
        while (w < 3 && at >= want[w] * total) printf("%s: %.2f\n", name[w++], 0.01 * pow(1.02, i + 1));
    }
    printf("longest_ms: %.1f\nrefused: %ld\nbroken: %ld\nacked_flows: %ld\nacked_tx: %ld\nacked_rx: %ld\n", max / 1e3, refused, broken, acked_flows, acked_tx, acked_rx);
    if (verbose)
        for (long i = 0; i <= (long)took && i < SECONDS_MAX; i++) printf("second %ld: %ld flows, longest %.1f ms\n", i, per_second[i], longest_us[i] / 1e3);
    return 0;
}
