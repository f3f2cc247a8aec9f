/* Holds a process at its very end: all its code has run, and its memory is still there. Says "watching"
 * when it can not end unseen any more and "ended" when it is held, and lets it go at the end of a line
 * on the standard input. */
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ptrace.h>
#include <sys/wait.h>

int main(int count, char **words) {
    if (count != 2) return 2;
    pid_t process = atoi(words[1]);
    /* The first thread alone: it is there until the last one is gone, and the memory with it. */
    if (ptrace(PTRACE_SEIZE, process, 0, PTRACE_O_TRACEEXIT) != 0) return perror("seize"), 1;
    puts("watching");
    fflush(stdout);
    for (;;) {
        int status;
        if (waitpid(process, &status, __WALL) != process) return perror("wait"), 1;
        if (!WIFSTOPPED(status)) return fprintf(stderr, "it ended unseen\n"), 1;
        if (status >> 8 == (SIGTRAP | (PTRACE_EVENT_EXIT << 8))) break;
        /* A signal on its way to the process, or a group stop, which has none. */
        int signal = status >> 16 ? 0 : WSTOPSIG(status);
        if (ptrace(PTRACE_CONT, process, 0, signal) != 0 && errno != ESRCH) return perror("cont"), 1;
    }
    puts("ended");
    fflush(stdout);
    getchar();
    ptrace(PTRACE_CONT, process, 0, 0);
    return 0;
}
