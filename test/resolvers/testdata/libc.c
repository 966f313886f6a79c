/* Looks up names as programs do with this C library, and prints their addresses. */
#include <arpa/inet.h>
#include <netdb.h>
#include <stdio.h>
#include <sys/socket.h>

int main(int argc, char **argv)
{
	for (int i = 1; i < argc; i++) {
		struct addrinfo hints = {.ai_family = AF_UNSPEC, .ai_socktype = SOCK_STREAM}, *found = NULL;
		int err = getaddrinfo(argv[i], NULL, &hints, &found);

		printf("%s", argv[i]);
		if (err == EAI_NONAME)
			printf(" none");
		else if (err)
			printf(" error:%s", gai_strerror(err));
		for (struct addrinfo *a = err ? NULL : found; a; a = a->ai_next) {
			char text[INET6_ADDRSTRLEN];
			void *address = a->ai_family == AF_INET ? (void *)&((struct sockaddr_in *)a->ai_addr)->sin_addr
								: (void *)&((struct sockaddr_in6 *)a->ai_addr)->sin6_addr;
			printf(" %s", inet_ntop(a->ai_family, address, text, sizeof text));
		}
		printf("\n");
		if (!err)
			freeaddrinfo(found);
	}
	return 0;
}
