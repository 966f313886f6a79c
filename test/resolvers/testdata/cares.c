/* Looks up names with c-ares, as Node.js and Envoy do, and prints their addresses. */
#include <ares.h>
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/select.h>
#include <sys/socket.h>

static void print(void *name, int status, int timeouts, struct ares_addrinfo *found)
{
	(void)timeouts;
	printf("%s", (char *)name);
	if (status == ARES_ENOTFOUND || status == ARES_ENODATA)
		printf(" none");
	else if (status != ARES_SUCCESS)
		printf(" error:%s", ares_strerror(status));
	for (struct ares_addrinfo_node *a = found ? found->nodes : NULL; a; a = a->ai_next) {
		char text[INET6_ADDRSTRLEN];
		void *address = a->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr
							: (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr;
		printf(" %s", inet_ntop(a->ai_family, address, text, sizeof text));
	}
	printf("\n");
	if (found)
		ares_freeaddrinfo(found);
}

int main(int argc, char **argv)
{
	ares_channel channel;

	if (ares_library_init(ARES_LIB_INIT_ALL) || ares_init(&channel))
		return 1;
	for (int i = 1; i < argc; i++) {
		struct ares_addrinfo_hints hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM};

		ares_getaddrinfo(channel, argv[i], NULL, &hints, print, argv[i]);
		for (;;) {
			fd_set readers, writers;
			struct timeval longest = {10, 0}, wait;

			FD_ZERO(&readers);
			FD_ZERO(&writers);
			int n = ares_fds(channel, &readers, &writers);
			if (n == 0)
				break;
			select(n, &readers, &writers, NULL, ares_timeout(channel, &longest, &wait));
			ares_process(channel, &readers, &writers);
		}
	}
	ares_destroy(channel);
	return 0;
}
