/* A PKCS#11 library around SoftHSM that hangs or refuses on demand. INNER_MODULE is the library
 * behind it; in the directory FAULTS a file "hang-destroy" has C_DestroyObject hang, "hang-find" has
 * C_FindObjectsInit hang, and "refuse-destroy" has C_DestroyObject say CKR_FUNCTION_REJECTED. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned long (*function)(void *, void *, void *, void *, void *, void *, void *, void *);
/* CK_FUNCTION_LIST of PKCS#11 2.40: a version and 68 functions in the order of the standard. */
struct list { unsigned char version[2]; function call[68]; };
enum { DESTROY_OBJECT = 22, FIND_OBJECTS_INIT = 26, FUNCTION_REJECTED = 0x200 };

static struct list outer, *inner;

static int fault(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("FAULTS"), name);
    return access(path, F_OK) == 0;
}

static unsigned long destroy(void *a, void *b, void *c, void *d, void *e, void *f, void *g, void *h) {
    while (fault("hang-destroy")) usleep(20000);
    if (fault("refuse-destroy")) return FUNCTION_REJECTED;
    return inner->call[DESTROY_OBJECT](a, b, c, d, e, f, g, h);
}

static unsigned long find(void *a, void *b, void *c, void *d, void *e, void *f, void *g, void *h) {
    while (fault("hang-find")) usleep(20000);
    return inner->call[FIND_OBJECTS_INIT](a, b, c, d, e, f, g, h);
}

unsigned long C_GetFunctionList(struct list **list) {
    void *library = dlopen(getenv("INNER_MODULE"), RTLD_NOW | RTLD_LOCAL);
    if (!library) { fprintf(stderr, "%s\n", dlerror()); return 5; }
    unsigned long (*get)(struct list **) = dlsym(library, "C_GetFunctionList");
    unsigned long rv = get(&inner);
    if (rv) return rv;
    memcpy(&outer, inner, sizeof outer);
    outer.call[DESTROY_OBJECT] = destroy;
    outer.call[FIND_OBJECTS_INIT] = find;
    *list = &outer;
    return 0;
}
