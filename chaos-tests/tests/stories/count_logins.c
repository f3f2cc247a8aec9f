/* A PKCS#11 module that hands out another one's functions (COUNTED_MODULE), and writes a byte to a
 * file (COUNTED_LOGINS) for each C_Login. It knows of PKCS#11 2.40 only where C_Login stands in the
 * list of functions: after the version, which fills one pointer, the nineteenth. */
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { FUNCTIONS = 68, LOGIN = 1 + 18 };

typedef unsigned long (*list_of)(void ***);
typedef unsigned long (*login)(unsigned long, unsigned long, unsigned char *, unsigned long);

static void *functions[1 + FUNCTIONS];
static login real_login;

static unsigned long counted(unsigned long session, unsigned long user, unsigned char *pin,
                             unsigned long length) {
    int file = open(getenv("COUNTED_LOGINS"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    if (file < 0 || write(file, "x", 1) != 1) abort();
    close(file);
    return real_login(session, user, pin, length);
}

unsigned long C_GetFunctionList(void ***list) {
    void *module = dlopen(getenv("COUNTED_MODULE"), RTLD_NOW);
    void **real;
    unsigned long result = ((list_of)dlsym(module, "C_GetFunctionList"))(&real);
    memcpy(functions, real, sizeof functions);
    real_login = (login)functions[LOGIN];
    functions[LOGIN] = (void *)counted;
    *list = functions;
    return result;
}
