/* Loaded before libc: a process that asks for a socket to another machine is ended, and says so. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

int socket(int domain, int type, int protocol) {
    if (domain == AF_INET || domain == AF_INET6) {
        static const char words[] = "a socket was asked for\n";
        if (write(2, words, sizeof words - 1) < 0) abort();
        abort();
    }
    int (*real)(int, int, int) = (int (*)(int, int, int))dlsym(RTLD_NEXT, "socket");
    return real(domain, type, protocol);
}
