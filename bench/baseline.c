// The baseline for fan-out over TCP: one thread, one write(2) for each stream, and no HTTP parser.
// GET /stream opens a stream. A request for any other path publishes one event to all streams.
//   ./baseline [port [payload bytes]]
#define _GNU_SOURCE
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MAX = 200000 };
static int streams[MAX], n;    // the descriptors of the open streams
static int place[MAX];         // a descriptor's index in streams plus 1; 0 if it is not a stream
static char event[65536 + 64]; // the newest event, len bytes
static int len, id, size = 600;

static void encode(void)
{
	len = sprintf(event, "id: %d\ndata: \"%0*d\"\n\n", ++id, size - 2, 0);
}

// Closes a connection. The last stream takes its place, because the kernel reuses the descriptor.
static void drop(int fd)
{
	if (place[fd]) {
		streams[place[fd] - 1] = streams[--n];
		place[streams[n]] = place[fd];
		place[fd] = 0;
	}
	close(fd);
}

static void publish(void)
{
	encode();
	// Backwards: drop only moves streams that already have the event.
	for (int i = n - 1; i >= 0; i--) {
		int sent = write(streams[i], event, len);
		if (sent != len && (sent >= 0 || errno != EAGAIN))
			drop(streams[i]); // the client is gone, or has half an event
	}
}

static void answer(int fd)
{
	static const char head[] = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
	static const char ok[] = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
	char buf[4096];
	int got = read(fd, buf, sizeof buf);
	if (got == 0 || (got < 0 && errno != EAGAIN)) {
		drop(fd);
	} else if (got < 11 || place[fd]) {
		return; // no request yet, or bytes from the client of a stream
	} else if (memcmp(buf, "GET /stream", 11)) {
		publish();
		if (write(fd, ok, sizeof ok - 1) < 0)
			drop(fd);
	} else if (write(fd, head, sizeof head - 1) < 0 || write(fd, event, len) != len) {
		drop(fd);
	} else {
		streams[n++] = fd;
		place[fd] = n;
	}
}

int main(int argc, char **argv)
{
	int l = socket(AF_INET, SOCK_STREAM, 0), ep = epoll_create1(0), one = 1;
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct rlimit rl;
	if (argc > 2 && ((size = atoi(argv[2])) < 3 || size > 65536))
		return fputs("baseline: the payload must be 3 to 65536 bytes\n", stderr), 2;
	encode();
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max < MAX ? rl.rlim_max : MAX;
	setrlimit(RLIMIT_NOFILE, &rl);
	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	a.sin_port = htons(argc > 1 ? atoi(argv[1]) : 4101);
	if (bind(l, (void *)&a, sizeof a) || listen(l, 4096))
		return perror("baseline: listening"), 1;
	struct epoll_event ev = {.events = EPOLLIN, .data.fd = l}, evs[512];
	epoll_ctl(ep, EPOLL_CTL_ADD, l, &ev);
	for (;;) {
		for (int k = epoll_wait(ep, evs, 512, -1), i = 0; i < k; i++)
			if ((ev.data.fd = evs[i].data.fd) != l) {
				answer(ev.data.fd);
			} else if ((ev.data.fd = accept4(l, 0, 0, SOCK_NONBLOCK)) >= 0) {
				setsockopt(ev.data.fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
				epoll_ctl(ep, EPOLL_CTL_ADD, ev.data.fd, &ev);
			}
	}
}
