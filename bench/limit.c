// The least that a server can do for fan-out over TCP: one thread, one write(2) a stream, no HTTP server.
// GET /stream holds the connection, any other path publishes one event: ./limit [port [payload bytes]]
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
static int held[MAX], n;        // the descriptors of the open streams
static int at[MAX];             // a descriptor's place in held, counted from 1; 0: it is not a stream
static char event[65536 + 64]; // the newest, len bytes
static int len, id, size = 600;

static void encode(void)
{
	len = sprintf(event, "id: %d\ndata: \"%0*d\"\n\n", ++id, size - 2, 0);
}

// Closes a connection. A stream's place is taken by the last one: its number may be another's at once.
static void drop(int fd)
{
	if (at[fd]) {
		held[at[fd] - 1] = held[--n];
		at[held[n]] = at[fd];
		at[fd] = 0;
	}
	close(fd);
}

static void publish(void)
{
	encode();
	for (int i = n - 1; i >= 0; i--) { // backwards: drop moves only what has been served
		int sent = write(held[i], event, len);
		if (sent != len && (sent >= 0 || errno != EAGAIN))
			drop(held[i]); // it has gone, or holds half an event
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
	} else if (got < 11 || at[fd]) {
		return; // nothing came, or a stream said something
	} else if (memcmp(buf, "GET /stream", 11)) {
		publish();
		if (write(fd, ok, sizeof ok - 1) < 0)
			drop(fd);
	} else if (write(fd, head, sizeof head - 1) < 0 || write(fd, event, len) != len) {
		drop(fd);
	} else {
		held[n++] = fd;
		at[fd] = n;
	}
}

int main(int argc, char **argv)
{
	int l = socket(AF_INET, SOCK_STREAM, 0), ep = epoll_create1(0), one = 1;
	struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	struct rlimit rl;
	if (argc > 2 && ((size = atoi(argv[2])) < 3 || size > 65536))
		return fputs("limit: the payload is 3 to 65536 bytes\n", stderr), 2;
	encode();
	signal(SIGPIPE, SIG_IGN);
	getrlimit(RLIMIT_NOFILE, &rl);
	rl.rlim_cur = rl.rlim_max < MAX ? rl.rlim_max : MAX;
	setrlimit(RLIMIT_NOFILE, &rl);
	setsockopt(l, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	a.sin_port = htons(argc > 1 ? atoi(argv[1]) : 4101);
	if (bind(l, (void *)&a, sizeof a) || listen(l, 4096))
		return perror("limit: listening"), 1;
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
