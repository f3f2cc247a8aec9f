/* A PKCS#11 module that passes every call on to another one, and on the way behaves as some device
 * does that nobody here has. The tests build it when they need it.
 *
 * QUIRKS_MODULE  the module that does the work
 * QUIRKS         a file with the quirks that are in force, read at every call:
 *   slow=MS             each call that reaches the device takes so long
 *   hang=N              the first N calls of an operation never come back while this stands here
 *   close=K             with each new K all sessions are closed underneath
 *   sessions=N          no more than N sessions
 *   fail=RV             operations fail with this code
 *   refuse-unwrap=N     the first N calls of C_UnwrapKey fail while this stands here
 *   no-gcm              AES-GCM is not there
 *   own-iv              AES-GCM insists on an IV of its own, written where a zeroed one was given
 *   append-iv           AES-GCM makes an IV of 16 bytes and appends it
 *   no-unwrap-template  CKA_UNWRAP_TEMPLATE is taken and ignored
 *   odd-unwrap-template CKA_UNWRAP_TEMPLATE is not known
 *   protected           the PIN is typed at the device: C_Login without one uses QUIRKS_PIN
 * QUIRKS_LOG     a file that gets a line for each C_Login: "login CODE"
 */
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

typedef unsigned long ulong_t;
typedef ulong_t rv_t;
typedef unsigned char byte_t;

struct mechanism { ulong_t kind; void *parameter; ulong_t length; };
struct attribute { ulong_t kind; void *value; ulong_t length; };
struct gcm { byte_t *iv; ulong_t iv_length, iv_bits; byte_t *aad; ulong_t aad_length, tag_bits; };
struct functions { byte_t version[2]; void *call[68]; };

/* Where a function stands in CK_FUNCTION_LIST. */
enum {
    FINALIZE = 1, GET_FUNCTION_LIST = 3, GET_TOKEN_INFO = 6, GET_MECHANISM_LIST = 7,
    OPEN_SESSION = 12, CLOSE_SESSION = 13, CLOSE_ALL_SESSIONS = 14, LOGIN = 18,
    FIND_OBJECTS_INIT = 26, ENCRYPT_INIT = 29, ENCRYPT = 30, DECRYPT_INIT = 33, SIGN_INIT = 42,
    GENERATE_KEY_PAIR = 59, UNWRAP_KEY = 61, GENERATE_RANDOM = 64
};
enum {
    OK = 0, GENERAL_ERROR = 5, ATTRIBUTE_TYPE_INVALID = 0x12, MECHANISM_INVALID = 0x70, MECHANISM_PARAM_INVALID = 0x71,
    PIN_INCORRECT = 0xa0, SESSION_COUNT = 0xb1, BUFFER_TOO_SMALL = 0x150
};
#define AES_GCM 0x1087ul
#define UNWRAP_TEMPLATE 0x40000212ul
#define FLAG_PROTECTED 0x100ul
#define IV 16

static struct functions real, shown;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static ulong_t open_sessions, slot_in_use, closed_for, hung, refused;
/* By session, the IV that will be appended. */
static struct { ulong_t session; byte_t iv[IV]; } appended[256];

/* The number behind a word of the file; 1 where it stands alone, 0 where it is not there. */
static ulong_t quirk(const char *word)
{
    char text[512];
    const char *path = getenv("QUIRKS");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0)
        return 0;
    ssize_t length = read(file, text, sizeof text - 1);
    close(file);
    text[length > 0 ? length : 0] = 0;
    char *rest = NULL;
    for (char *item = strtok_r(text, " \n", &rest); item; item = strtok_r(NULL, " \n", &rest)) {
        size_t size = strlen(word);
        if (strncmp(item, word, size))
            continue;
        if (item[size] == '=')
            return strtoul(item + size + 1, NULL, 0);
        if (!item[size])
            return 1;
    }
    return 0;
}

static rv_t all_closed(ulong_t slot)
{
    pthread_mutex_lock(&mutex);
    open_sessions = 0;
    pthread_mutex_unlock(&mutex);
    return ((rv_t (*)(ulong_t))real.call[CLOSE_ALL_SESSIONS])(slot);
}

/* What may happen on the way to the device. */
static void travel(void)
{
    usleep(1000 * quirk("slow"));
    ulong_t now = quirk("close");
    pthread_mutex_lock(&mutex);
    int fresh = now && now != closed_for;
    closed_for = now ? now : closed_for;
    pthread_mutex_unlock(&mutex);
    if (fresh)
        all_closed(slot_in_use);
}

/* The same for an operation, which may also never come back, or fail. */
static rv_t operate(void)
{
    travel();
    pthread_mutex_lock(&mutex);
    ulong_t wanted = quirk("hang");
    if (!wanted)
        hung = 0;
    int hangs = hung < wanted;
    hung += hangs;
    if (!quirk("refuse-unwrap"))
        refused = 0;
    pthread_mutex_unlock(&mutex);
    while (hangs && quirk("hang"))
        usleep(10000);
    return quirk("fail");
}

static rv_t finalize(void *reserved)
{
    pthread_mutex_lock(&mutex);
    open_sessions = 0;
    pthread_mutex_unlock(&mutex);
    return ((rv_t (*)(void *))real.call[FINALIZE])(reserved);
}

static rv_t get_token_info(ulong_t slot, byte_t *info)
{
    rv_t rv = ((rv_t (*)(ulong_t, byte_t *))real.call[GET_TOKEN_INFO])(slot, info);
    /* label 32, manufacturer 32, model 16, serial 16, then the flags. */
    if (!rv && quirk("protected"))
        *(ulong_t *)(void *)(info + 96) |= FLAG_PROTECTED;
    return rv;
}

static rv_t get_mechanism_list(ulong_t slot, ulong_t *list, ulong_t *count)
{
    rv_t rv = ((rv_t (*)(ulong_t, ulong_t *, ulong_t *))real.call[GET_MECHANISM_LIST])(slot, list, count);
    if (rv || !list || !quirk("no-gcm"))
        return rv;
    ulong_t kept = 0;
    for (ulong_t i = 0; i < *count; i++)
        if (list[i] != AES_GCM)
            list[kept++] = list[i];
    *count = kept;
    return rv;
}

static rv_t open_session(ulong_t slot, ulong_t flags, void *application, void *notify, ulong_t *session)
{
    travel();
    ulong_t most = quirk("sessions");
    pthread_mutex_lock(&mutex);
    int full = most && open_sessions >= most;
    open_sessions += !full;
    slot_in_use = slot;
    pthread_mutex_unlock(&mutex);
    if (full)
        return SESSION_COUNT;
    return ((rv_t (*)(ulong_t, ulong_t, void *, void *, ulong_t *))real.call[OPEN_SESSION])(slot, flags, application, notify, session);
}

static rv_t close_session(ulong_t session)
{
    rv_t rv = ((rv_t (*)(ulong_t))real.call[CLOSE_SESSION])(session);
    pthread_mutex_lock(&mutex);
    open_sessions -= !rv && open_sessions;
    pthread_mutex_unlock(&mutex);
    return rv;
}

static rv_t login(ulong_t session, ulong_t user, byte_t *pin, ulong_t length)
{
    travel();
    rv_t rv = PIN_INCORRECT;
    char *typed = getenv("QUIRKS_PIN");
    rv_t (*call)(ulong_t, ulong_t, byte_t *, ulong_t) = real.call[LOGIN];
    if (!quirk("protected"))
        rv = call(session, user, pin, length);
    else if (!pin && typed)
        rv = call(session, user, (byte_t *)typed, strlen(typed));
    char line[32];
    int size = snprintf(line, sizeof line, "login %lu\n", rv);
    const char *path = getenv("QUIRKS_LOG");
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600) : -1;
    if (file >= 0) {
        if (write(file, line, size) != size)
            abort();
        close(file);
    }
    return rv;
}

static rv_t find_objects_init(ulong_t session, struct attribute *template, ulong_t count)
{
    travel();
    return ((rv_t (*)(ulong_t, struct attribute *, ulong_t))real.call[FIND_OBJECTS_INIT])(session, template, count);
}

static rv_t encrypt_init(ulong_t session, struct mechanism *mechanism, ulong_t key)
{
    rv_t (*call)(ulong_t, struct mechanism *, ulong_t) = real.call[ENCRYPT_INIT];
    rv_t rv = operate();
    if (rv || mechanism->kind != AES_GCM)
        return rv ? rv : call(session, mechanism, key);
    if (quirk("no-gcm"))
        return MECHANISM_INVALID;
    struct gcm *given = mechanism->parameter, own = *given;
    int place = session % 256;
    appended[place].session = 0;
    if (quirk("own-iv")) {
        for (ulong_t i = 0; i < given->iv_length; i++)
            if (given->iv[i])
                return MECHANISM_PARAM_INVALID;
        if (getrandom(given->iv, given->iv_length, 0) < 0)
            abort();
    } else if (quirk("append-iv")) {
        if (getrandom(appended[place].iv, IV, 0) < 0)
            abort();
        appended[place].session = session;
        own.iv = appended[place].iv;
        own.iv_length = IV;
        own.iv_bits = 8 * IV;
    }
    struct mechanism changed = { AES_GCM, &own, sizeof own };
    return call(session, &changed, key);
}

static rv_t encrypt(ulong_t session, byte_t *data, ulong_t length, byte_t *out, ulong_t *out_length)
{
    rv_t (*call)(ulong_t, byte_t *, ulong_t, byte_t *, ulong_t *) = real.call[ENCRYPT];
    int place = session % 256;
    if (appended[place].session != session)
        return call(session, data, length, out, out_length);
    ulong_t room = *out_length;
    rv_t rv = call(session, data, length, out, out_length);
    if (rv)
        return rv;
    *out_length += IV;
    if (!out)
        return OK;
    appended[place].session = 0;
    if (room < *out_length)
        return BUFFER_TOO_SMALL;
    memcpy(out + *out_length - IV, appended[place].iv, IV);
    return OK;
}

static rv_t decrypt_init(ulong_t session, struct mechanism *mechanism, ulong_t key)
{
    rv_t rv = operate();
    if (!rv && mechanism->kind == AES_GCM && quirk("no-gcm"))
        rv = MECHANISM_INVALID;
    if (rv)
        return rv;
    return ((rv_t (*)(ulong_t, struct mechanism *, ulong_t))real.call[DECRYPT_INIT])(session, mechanism, key);
}

static rv_t sign_init(ulong_t session, struct mechanism *mechanism, ulong_t key)
{
    rv_t rv = operate();
    if (rv)
        return rv;
    return ((rv_t (*)(ulong_t, struct mechanism *, ulong_t))real.call[SIGN_INIT])(session, mechanism, key);
}

static rv_t generate_key_pair(ulong_t session, struct mechanism *mechanism, struct attribute *public,
                              ulong_t public_count, struct attribute *private, ulong_t private_count,
                              ulong_t *public_key, ulong_t *private_key)
{
    struct attribute kept[64];
    ulong_t count = 0;
    int ignores = quirk("no-unwrap-template"), refuses = quirk("odd-unwrap-template");
    for (ulong_t i = 0; i < private_count && count < 64; i++) {
        int it = private[i].kind == UNWRAP_TEMPLATE;
        if (it && refuses)
            return ATTRIBUTE_TYPE_INVALID;
        if (!(it && ignores))
            kept[count++] = private[i];
    }
    return ((rv_t (*)(ulong_t, struct mechanism *, struct attribute *, ulong_t, struct attribute *, ulong_t, ulong_t *, ulong_t *))
            real.call[GENERATE_KEY_PAIR])(session, mechanism, public, public_count, kept, count, public_key, private_key);
}

static rv_t unwrap_key(ulong_t session, struct mechanism *mechanism, ulong_t key, byte_t *wrapped,
                       ulong_t length, struct attribute *template, ulong_t count, ulong_t *unwrapped)
{
    pthread_mutex_lock(&mutex);
    int refuses = refused < quirk("refuse-unwrap");
    refused += refuses;
    pthread_mutex_unlock(&mutex);
    if (refuses)
        return GENERAL_ERROR;
    return ((rv_t (*)(ulong_t, struct mechanism *, ulong_t, byte_t *, ulong_t, struct attribute *, ulong_t, ulong_t *))
            real.call[UNWRAP_KEY])(session, mechanism, key, wrapped, length, template, count, unwrapped);
}

static rv_t generate_random(ulong_t session, byte_t *bytes, ulong_t length)
{
    rv_t rv = operate();
    return rv ? rv : ((rv_t (*)(ulong_t, byte_t *, ulong_t))real.call[GENERATE_RANDOM])(session, bytes, length);
}

rv_t C_GetFunctionList(struct functions **list)
{
    const char *path = getenv("QUIRKS_MODULE");
    void *library = path ? dlopen(path, RTLD_NOW | RTLD_LOCAL) : NULL;
    rv_t (*get)(struct functions **) = library ? dlsym(library, "C_GetFunctionList") : NULL;
    struct functions *theirs;
    if (!get || get(&theirs)) {
        fprintf(stderr, "quirks: QUIRKS_MODULE names no module\n");
        return 5;
    }
    real = shown = *theirs;
    shown.call[FINALIZE] = finalize;
    shown.call[GET_FUNCTION_LIST] = C_GetFunctionList;
    shown.call[GET_TOKEN_INFO] = get_token_info;
    shown.call[GET_MECHANISM_LIST] = get_mechanism_list;
    shown.call[OPEN_SESSION] = open_session;
    shown.call[CLOSE_SESSION] = close_session;
    shown.call[CLOSE_ALL_SESSIONS] = all_closed;
    shown.call[LOGIN] = login;
    shown.call[FIND_OBJECTS_INIT] = find_objects_init;
    shown.call[ENCRYPT_INIT] = encrypt_init;
    shown.call[ENCRYPT] = encrypt;
    shown.call[DECRYPT_INIT] = decrypt_init;
    shown.call[SIGN_INIT] = sign_init;
    shown.call[GENERATE_KEY_PAIR] = generate_key_pair;
    shown.call[UNWRAP_KEY] = unwrap_key;
    shown.call[GENERATE_RANDOM] = generate_random;
    *list = &shown;
    return OK;
}
