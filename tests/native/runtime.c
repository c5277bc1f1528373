/* A simulated librkllmrt.so: the calls, layouts, callbacks and mistakes of Rockchip's library, without its NPU.

   One shared library per family of releases (A, B0, B, C or D, see abi.h):

       cc -shared -fPIC -O2 -std=c11 -Wall -Wextra -Werror -DFAMILY=C -o librkllmrt.so runtime.c -lm -lpthread

   -DVERSION='"1.2.2"' is another release of the family. aarch64-linux-gnu-gcc and arm-linux-gnueabihf-gcc take the same
   arguments. -std=c11 is needed: other modes let a compiler fuse float operations, and vectors differ between machines.

   A mistake that the real library is known to answer with a crash crashes here too, after a line on stderr.

   MODEL FILE, what rkllm_init loads. First line `RKLLM-SIMULATED-MODEL 1`, then `key = value` lines, one empty line,
   then `weights` bytes of anything:

       toolkit = 1.2.3        version that made it; before 1.1 it is refused
       platform = RK3588      refused on another board ($RKLLM_SIM_PLATFORM, RK3588 by default)
       cores = 3              NPU cores; more than the board has: refused
       max_context = 4096     tokens; a larger max_context_len is refused
       dtype = W8A8           only told
       task = embed           only for people
       dim = 1024             numbers of a hidden state
       vocab = 151936         token ids are 0..vocab-1
       eos = -1               id of the end mark, -1: the model has none
       weights = 0            bytes after the empty line; fewer: refused as cut off
       yes = 9693, no = 2152  (two lines) ids whose logits differ by how well <Query> and <Document> agree
       load_ms = 0            time that rkllm_init takes
       us_per_token = 0       time that a token takes, those left in the KV cache included
       memory_mb = 0          memory taken by rkllm_init
       leak_kb = 0            memory lost by each run for hidden states, in C and D; not if D's callback returned 2
       contaminates = 0       1: family A keeps the KV cache from run to run, as the others do until it is cleared

   FAULTS, `<model_path>.faults`, read again when it has changed, at every run. Lines `key = value`, `#` for remarks:

       crash, hang, nan, zero, error, silent, short, stale = 0..1
                              how likely a run is to: die of SIGSEGV; wait to be aborted; give a NaN; give zeros;
                              return -1; give no data and return 0; give one row too few; give the vector of
                              the run before
       crash_on, hang_on, ... = text    the same, for every run whose bytes contain the text
       seed = 1               the draws of a process are always the same ones; without it they never are
       deaf = 1               rkllm_abort does nothing
       run_ms = 0             more time for each run
       leak_kb = 0            instead of the model's
       oom, init_fail, init_hang = 1    rkllm_init dies of SIGSEGV, returns -1, never returns
       init_crash = SIGILL    rkllm_init dies of SIGILL, SIGBUS or SIGSEGV

   Environment: RKLLM_SIM_PLATFORM, RKLLM_SIM_CPUS (processors that createDefaultParam counts), RKLLM_LOG_LEVEL. */
#define _GNU_SOURCE

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <strings.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"
#include "model.h"

#ifndef VERSION
#if SINCE(D)
#define VERSION "1.3.0"
#elif SINCE(C)
#define VERSION "1.2.3"
#elif SINCE(B)
#define VERSION "1.2.1b1"
#elif SINCE(B0)
#define VERSION "1.2.0"
#else
#define VERSION "1.1.4"
#endif
#endif

#define EXPORT __attribute__((visibility("default")))
#define MARGIN 4 /* tokens of the context that a prompt cannot have */
#define LAST_MODE (SINCE(B0) ? LOGITS : HIDDEN)

__attribute__((used)) static const char banner[] =
    "RKLLM SDK (version: " VERSION " | target: Simulated | build: simulated runtime, not by Rockchip)";

/* ---- saying things ---- */

__attribute__((format(printf, 1, 2))) static void tell(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    fputs("I rkllm: ", stdout);
    vfprintf(stdout, format, rest);
    fputc('\n', stdout);
    fflush(stdout);
    va_end(rest);
}

__attribute__((format(printf, 1, 2))) static int refuse(const char *format, ...) {
    va_list rest;
    va_start(rest, format);
    fputs("E rkllm: ", stderr);
    vfprintf(stderr, format, rest);
    fputc('\n', stderr);
    fflush(stderr);
    va_end(rest);
    return -1;
}

static int *volatile nowhere;

_Noreturn static void crash(const char *why) {
    fprintf(stderr, "simulated: SIGSEGV: %s\n", why);
    fflush(stderr);
    *nowhere = 1;
    abort();
}

_Noreturn static void misused(const char *why) {
    fprintf(stderr, "simulated: SIGABRT: %s\n", why);
    fflush(stderr);
    abort();
}

static double now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec * 1e3 + (double)now.tv_nsec / 1e6;
}

static void doze(double ms) {
    struct timespec span = {(time_t)(ms / 1e3), (long)((long long)(ms * 1e6) % 1000000000)};
    while (nanosleep(&span, &span) && errno == EINTR)
        ;
}

/* ---- files of keys and values ---- */

static char *trimmed(char *text) {
    while (*text == ' ' || *text == '\t')
        text++;
    size_t length = strlen(text);
    while (length && strchr(" \t\r\n", text[length - 1]))
        text[--length] = 0;
    return text;
}

/* Split `key = value`; false for a line without =. */
static bool pair_of(char *line, char **key, char **value) {
    char *equals = strchr(line, '=');
    if (!equals)
        return false;
    *equals = 0;
    *key = trimmed(line);
    *value = trimmed(equals + 1);
    return true;
}

struct model {
    char toolkit[32], platform[32], dtype[32];
    long cores, max_context, dim, vocab, eos, weights, yes, no, load_ms, us_per_token, memory_mb, leak_kb, contaminates;
};

static long cores_of_board(const char *board) {
    return !strcasecmp(board, "RK3588") ? 3 : !strcasecmp(board, "RK3576") ? 2 : 1;
}

static const char *board(void) {
    const char *name = getenv("RKLLM_SIM_PLATFORM");
    return name && *name ? name : "RK3588";
}

static int set_key(struct model *model, const char *key, const char *value) {
    const struct {
        const char *key;
        char *text;
        long *number;
        long least;
    } known[] = {
        {"toolkit", model->toolkit, NULL, 0},
        {"platform", model->platform, NULL, 0},
        {"dtype", model->dtype, NULL, 0},
        {"cores", NULL, &model->cores, 1},
        {"max_context", NULL, &model->max_context, 32},
        {"dim", NULL, &model->dim, 1},
        {"vocab", NULL, &model->vocab, 1},
        {"eos", NULL, &model->eos, -1},
        {"weights", NULL, &model->weights, 0},
        {"yes", NULL, &model->yes, 0},
        {"no", NULL, &model->no, 0},
        {"load_ms", NULL, &model->load_ms, 0},
        {"us_per_token", NULL, &model->us_per_token, 0},
        {"memory_mb", NULL, &model->memory_mb, 0},
        {"leak_kb", NULL, &model->leak_kb, 0},
        {"contaminates", NULL, &model->contaminates, 0},
    };
    for (size_t i = 0; i < sizeof known / sizeof *known; i++) {
        if (strcmp(known[i].key, key))
            continue;
        if (known[i].text) {
            if (strlen(value) >= sizeof model->toolkit)
                return refuse("invalid model file: %s is too long", key);
            strcpy(known[i].text, value);
            return 0;
        }
        char *end;
        long number = strtol(value, &end, 10);
        if (end == value || *end || number < known[i].least || number > 1000000000)
            return refuse("invalid model file: %s = %s", key, value);
        *known[i].number = number;
        return 0;
    }
    return strcmp(key, "task") ? refuse("invalid model file: no such key: %s", key) : 0;
}

static int read_model(struct model *model, const char *path) {
    *model = (struct model){.toolkit = VERSION, .platform = "RK3588", .dtype = "W8A8", .max_context = 4096, .dim = 1024,
                            .vocab = 151936, .eos = -1, .yes = 9693, .no = 2152};
    FILE *file = fopen(path, "rb");
    if (!file)
        return refuse("failed to open model file %s: %s", path, strerror(errno));
    char *line = NULL, *key, *value;
    size_t room = 0;
    ssize_t length = getline(&line, &room, file);
    bool whole = false;
    int status = 0;
    if (length < 0 || strcmp(line, "RKLLM-SIMULATED-MODEL 1\n"))
        status = refuse("invalid model file %s", path);
    while (status == 0 && (length = getline(&line, &room, file)) >= 0) {
        if (strcmp(line, "\n") == 0) {
            whole = true;
            break;
        }
        status = pair_of(line, &key, &value) ? set_key(model, key, value) : refuse("invalid model file %s", path);
    }
    struct stat about = {0};
    long long rest = status == 0 && fstat(fileno(file), &about) == 0 ? (long long)about.st_size - ftell(file) : 0;
    if (status == 0 && (!whole || rest < model->weights))
        status = refuse("failed to load model: file is cut off, %lld of %ld bytes of weights", whole ? rest : 0,
                        model->weights);
    free(line);
    fclose(file);
    if (status == 0 && !model->cores)
        model->cores = cores_of_board(model->platform);
    return status;
}

enum fault { CRASH, HANG, NOT_A_NUMBER, ZERO, FAIL, SILENT, SHORT, STALE, NO_FAULT };

static const char *const fault_names[NO_FAULT] = {"crash", "hang", "nan", "zero", "error", "silent", "short", "stale"};

struct faults {
    double odds[NO_FAULT];
    char on[NO_FAULT][256];
    bool any_on, seeded, deaf, oom, init_fail, init_hang;
    uint64_t seed;
    int init_crash;
    long leak_kb; /* -1: the model's */
    double run_ms;
    bool there;
    struct timespec changed;
    off_t size;
    ino_t inode;
};

static void set_fault(struct faults *faults, const char *key, const char *value) {
    double number = atof(value);
    for (int i = 0; i < NO_FAULT; i++) {
        size_t length = strlen(fault_names[i]);
        if (!strcmp(key, fault_names[i])) {
            faults->odds[i] = number;
            return;
        }
        if (!strncmp(key, fault_names[i], length) && !strcmp(key + length, "_on")) {
            if (strlen(value) >= sizeof faults->on[i])
                refuse("faults: %s is too long", key);
            else
                strcpy(faults->on[i], value);
            faults->any_on |= *faults->on[i] != 0;
            return;
        }
    }
    if (!strcmp(key, "seed")) {
        faults->seeded = true;
        faults->seed = strtoull(value, NULL, 10);
    } else if (!strcmp(key, "deaf"))
        faults->deaf = number != 0;
    else if (!strcmp(key, "oom"))
        faults->oom = number != 0;
    else if (!strcmp(key, "init_fail"))
        faults->init_fail = number != 0;
    else if (!strcmp(key, "init_hang"))
        faults->init_hang = number != 0;
    else if (!strcmp(key, "run_ms"))
        faults->run_ms = number;
    else if (!strcmp(key, "leak_kb"))
        faults->leak_kb = (long)number;
    else if (!strcmp(key, "init_crash"))
        faults->init_crash = !strcmp(value, "SIGILL") ? SIGILL : !strcmp(value, "SIGBUS") ? SIGBUS : SIGSEGV;
    else
        refuse("faults: no such key: %s", key);
}

static void read_faults(struct faults *faults, const char *model_path) {
    char path[4096];
    struct stat about;
    snprintf(path, sizeof path, "%s.faults", model_path);
    bool there = stat(path, &about) == 0;
    if (there && faults->there && about.st_mtim.tv_sec == faults->changed.tv_sec &&
        about.st_mtim.tv_nsec == faults->changed.tv_nsec && about.st_size == faults->size &&
        about.st_ino == faults->inode)
        return;
    if (!there && !faults->there)
        return;
    memset(faults, 0, sizeof *faults);
    faults->leak_kb = -1;
    FILE *file = there ? fopen(path, "rb") : NULL;
    if (!file)
        return;
    faults->there = true;
    faults->changed = about.st_mtim;
    faults->size = about.st_size;
    faults->inode = about.st_ino;
    char *line = NULL, *key, *value;
    size_t room = 0;
    while (getline(&line, &room, file) >= 0)
        if (*trimmed(line) && *trimmed(line) != '#' && pair_of(line, &key, &value))
            set_fault(faults, key, value);
    free(line);
    fclose(file);
}

/* ---- handles ---- */

struct handle {
    struct handle *next;
    char *path;
    struct model model;
    struct faults faults;
    struct context context;
    int max_context, max_new_tokens, top_k, n_batch, cross_attention;
    bool is_async;
    result_callback *callback;
    bool callable; /* the callback points to code */
    char *template[3], *lora;
    void *memory;
    float *row_before; /* last hidden state of the run before */
    bool has_row_before;

    /* What callbacks see lies between forbidden pages and is forbidden itself once they return: whoever reads it later,
       or beyond its end, dies. */
    char *page, *data;
    size_t data_size;

    pthread_mutex_t mutex;
    pthread_cond_t woken;
    bool running, finishing, aborted, has_thread;
    pthread_t thread;
};

static pthread_mutex_t handles_mutex = PTHREAD_MUTEX_INITIALIZER;
static struct handle *handles;
static uint64_t runs; /* of this process */

/* The handle, NULL for NULL; whatever else is no living handle crashes. */
static struct handle *known(void *wanted) {
    if (!wanted)
        return NULL;
    pthread_mutex_lock(&handles_mutex);
    struct handle *handle = handles;
    while (handle && handle != wanted)
        handle = handle->next;
    pthread_mutex_unlock(&handles_mutex);
    if (!handle)
        crash("no such handle, or destroyed");
    return handle;
}

static size_t page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

/* `size` bytes that end at a forbidden page. */
static char *guarded(size_t size) {
    char *start = mmap(NULL, size + page_size(), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (start == MAP_FAILED)
        crash("out of memory");
    mprotect(start + size, page_size(), PROT_NONE);
    return start;
}

static void drop_data(struct handle *handle) {
    if (handle->data)
        munmap(handle->data, handle->data_size + page_size());
    handle->data = NULL;
    handle->data_size = 0;
}

static float *open_data(struct handle *handle, size_t floats) {
    size_t wanted = floats * sizeof(float), page = page_size();
    if (handle->data_size < wanted) {
        drop_data(handle);
        handle->data_size = (wanted + page - 1) / page * page;
        handle->data = guarded(handle->data_size);
    } else {
        mprotect(handle->data, handle->data_size, PROT_READ | PROT_WRITE);
    }
    return (float *)(void *)(handle->data + handle->data_size - wanted);
}

static void close_data(struct handle *handle) {
    if (handle->data_size > 8 << 20)
        drop_data(handle);
    else
        mprotect(handle->data, handle->data_size, PROT_NONE);
}

/* Call back; what the callback returned, 0 where the family does not look at it. */
static int call(struct handle *handle, void *user, int state, const struct result *result, const char *text) {
    mprotect(handle->page, page_size(), PROT_READ | PROT_WRITE);
    struct result *shown = (struct result *)(void *)(handle->page + page_size() - sizeof *shown);
    *shown = *result;
    shown->text = text ? strcpy(handle->page, text) : NULL;
#if SINCE(C)
    int answer = handle->callback(shown, user, state);
#else
    int answer = 0;
    handle->callback(shown, user, state);
#endif
    mprotect(handle->page, page_size(), PROT_NONE);
    return answer;
}

/* Whether memory may be run as code; true when nobody can tell. */
static bool is_code(result_callback *callback) {
    unsigned long at = (unsigned long)(uintptr_t)callback, start, end;
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps)
        return true;
    char line[4352], mode[5];
    bool found = false;
    while (!found && fgets(line, sizeof line, maps))
        found = sscanf(line, "%lx-%lx %4s", &start, &end, mode) == 3 && at >= start && at < end && mode[2] == 'x';
    fclose(maps);
    return found;
}

static void free_handle(struct handle *handle) {
    drop_data(handle);
    if (handle->page)
        munmap(handle->page, 2 * page_size());
    for (int i = 0; i < 3; i++)
        free(handle->template[i]);
    free(handle->path);
    free(handle->lora);
    free(handle->memory);
    free(handle->row_before);
    free(handle->context.sum);
    free(handle);
}

/* ---- opening ---- */

static int touch(const char *text) { return text ? (int)strlen(text) : 0; }

EXPORT struct param rkllm_createDefaultParam(void) {
    static _Alignas(16) const char nothing[] = "";
    static _Alignas(16) const char start[] = "<img>", end[] = "</img>", content[] = "<unk>";
    struct param param;
    memset(&param, 0xA5, sizeof param); /* what is not set below is set by nobody */
    param.model_path = NULL;
    param.max_context_len = 512;
    param.max_new_tokens = -1;
    param.top_k = SINCE(B0) ? 40 : 1;
    param.top_p = 0.9f;
    param.temperature = 0.8f;
    param.repeat_penalty = 1.1f;
    param.frequency_penalty = param.presence_penalty = 0;
    param.mirostat = 0;
    param.mirostat_tau = 5.0f;
    param.mirostat_eta = 0.1f;
    param.skip_special_token = 1;
    param.is_async = 0;
    param.extend_param.base_domain_id = 0;
#if !SINCE(D)
    param.img_start = SINCE(B0) ? nothing : start;
    param.img_end = SINCE(B0) ? nothing : end;
    param.img_content = SINCE(B0) ? nothing : content;
#else
    param.ignore_eos_token = 0;
    (void)nothing, (void)start, (void)end, (void)content;
#endif
#if SINCE(B0)
    const char *said = getenv("RKLLM_SIM_CPUS");
    long cpus = said ? atol(said) : sysconf(_SC_NPROCESSORS_ONLN);
    param.n_keep = -1;
    param.extend_param.embed_flash = 1;
    param.extend_param.enabled_cpus_num = 4;
    if (cpus == 8 || cpus == 4)
        param.extend_param.enabled_cpus_mask = cpus == 8 ? 0xF0 : 0x0F;
#endif
#if SINCE(C)
    param.extend_param.n_batch = 1;
    param.extend_param.use_cross_attn = 0;
#endif
    return param;
}

static int check_param(const struct param *param) {
    const struct extend_param *extend = &param->extend_param;
    if (!param->model_path)
        return refuse("model_path is null");
    if (param->max_context_len <= 0)
        return refuse("invalid max_context_len: %d", param->max_context_len);
    if (param->top_k < 0 || param->top_k > 1000000)
        fprintf(stderr, "W rkllm: top_k = %d\n", param->top_k);
#if SINCE(B0)
    if (param->n_keep < -1 || param->n_keep > param->max_context_len)
        return refuse("invalid n_keep: %d", param->n_keep);
#endif
#if !SINCE(D)
    if (touch(param->img_start) + touch(param->img_end) + touch(param->img_content) > 4096)
        return refuse("invalid image marks");
#endif
    if (extend->base_domain_id < 0 || extend->base_domain_id > 15)
        return refuse("invalid base_domain_id: %d", extend->base_domain_id);
#if SINCE(B0)
    if (extend->embed_flash != 0 && extend->embed_flash != 1)
        return refuse("invalid embed_flash: %d", extend->embed_flash);
    if (extend->enabled_cpus_num < 1 || extend->enabled_cpus_num > 8)
        return refuse("invalid enabled_cpus_num: %d", extend->enabled_cpus_num);
    if (!extend->enabled_cpus_mask || extend->enabled_cpus_mask > 0xFF)
        return refuse("invalid enabled_cpus_mask: 0x%x", extend->enabled_cpus_mask);
#endif
    return 0;
}

static void tell_cpus(const struct param *param) {
    uint32_t mask = 0xF0;
#if SINCE(B0)
    mask = param->extend_param.enabled_cpus_mask;
#else
    (void)param;
#endif
    char list[64] = "";
    for (int cpu = 0; cpu < 8; cpu++)
        if (mask >> cpu & 1)
            sprintf(list + strlen(list), "%s%d", *list ? ", " : "", cpu);
    tell("Enabled cpus: [%s]", list);
}

static int check_model(const struct model *model, const struct param *param) {
    int major = 0, minor = 0;
    if (sscanf(model->toolkit, "%d.%d", &major, &minor) != 2 || major * 100 + minor < 101)
        return refuse("model was converted by rkllm-toolkit %s, which this runtime cannot load", model->toolkit);
    if (strcasecmp(model->platform, board()))
        return refuse("model target_platform %s does not match this device %s", model->platform, board());
    if (model->cores > cores_of_board(board()))
        return refuse("model needs %ld NPU cores, this device has %ld", model->cores, cores_of_board(board()));
    tell("rkllm-toolkit version: %s, max_context_limit: %ld, npu_core_num: %ld, target_platform: %s, model_dtype: %s",
         model->toolkit, model->max_context, model->cores, model->platform, model->dtype);
    tell_cpus(param);
    if (param->max_context_len > model->max_context)
        return refuse("max_context_len %d exceeds the max_context_limit %ld of the model", param->max_context_len,
                      model->max_context);
    return 0;
}

/* Two models in one process came with 1.2.2. */
static bool alone_only(void) { return !SINCE(C) || !strcmp(VERSION, "1.2.1"); }

static int init(void **out, struct param *param, result_callback *callback) {
    tell("rkllm-runtime version: " VERSION ", rknpu driver version: 0.9.8, platform: %s", board());
    struct handle *handle = calloc(1, sizeof *handle);
    if (!handle || check_param(param) || !(handle->path = strdup(param->model_path))) {
        free(handle);
        return -1;
    }
    handle->faults.leak_kb = -1;
    read_faults(&handle->faults, handle->path);
    while (handle->faults.init_hang)
        doze(1000);
    if (handle->faults.init_crash == SIGILL || handle->faults.init_crash == SIGBUS) {
        raise(handle->faults.init_crash);
        abort();
    }
    if (handle->faults.oom || handle->faults.init_crash)
        crash(handle->faults.oom ? "out of memory" : "init_crash");
    if (read_model(&handle->model, handle->path) || check_model(&handle->model, param)) {
        free_handle(handle);
        return -1;
    }
    const struct model *model = &handle->model;
    doze((double)model->load_ms);
    size_t bytes = (size_t)model->memory_mb << 20;
    if (bytes && (handle->memory = malloc(bytes)))
        memset(handle->memory, 1, bytes);
    handle->row_before = calloc((size_t)model->dim, sizeof(float));
    if ((bytes && !handle->memory) || !handle->row_before ||
        !context_open(&handle->context, (int)model->dim, (int32_t)model->eos))
        crash("out of memory");
    if (handle->faults.init_fail) {
        free_handle(handle);
        return refuse("failed to init");
    }

    handle->max_context = param->max_context_len;
    handle->max_new_tokens = param->max_new_tokens;
    handle->top_k = param->top_k;
    handle->is_async = param->is_async != 0;
    handle->n_batch = 1;
#if SINCE(C)
    handle->n_batch = param->extend_param.n_batch;
    handle->cross_attention = param->extend_param.use_cross_attn;
#endif
    handle->callback = callback;
    handle->callable = is_code(callback);
    static const char *const template[3] = {"", "<|im_start|>user\n",
                                             "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"};
    for (int i = 0; i < 3; i++)
        handle->template[i] = strdup(template[i]);
    handle->page = guarded(page_size());
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&handle->woken, &monotonic);
    pthread_condattr_destroy(&monotonic);
    pthread_mutex_init(&handle->mutex, NULL);

    pthread_mutex_lock(&handles_mutex);
    bool refused = handles && alone_only();
    if (!refused) {
        handle->next = handles;
        handles = handle;
    }
    pthread_mutex_unlock(&handles_mutex);
    if (refused) {
        free_handle(handle);
        return refuse("failed to init: another model is open in this process");
    }
    *out = handle;
    return 0;
}

#if SINCE(D)
EXPORT int rkllm_init(void **out, struct param *param, struct callbacks *callbacks) {
    /* A function passed here instead is read as if its code were pointers. */
    return out && param && callbacks ? init(out, param, callbacks->result_callback) : refuse("null argument");
}
#else
EXPORT int rkllm_init(void **out, struct param *param, result_callback *callback) {
    return out && param && callback ? init(out, param, callback) : refuse("null argument");
}
#endif

/* ---- a run ---- */

static bool is_aborted(struct handle *handle) {
    pthread_mutex_lock(&handle->mutex);
    bool aborted = handle->aborted;
    pthread_mutex_unlock(&handle->mutex);
    return aborted;
}

/* Let time pass, for ever if `ms` is negative; true once the run is aborted. */
static bool passed(struct handle *handle, double ms) {
    double end = now_ms() + ms;
    struct timespec until = {(time_t)(end / 1e3), (long)((long long)(end * 1e6) % 1000000000)};
    pthread_mutex_lock(&handle->mutex);
    while (ms != 0 && !handle->aborted) {
        if (ms < 0)
            pthread_cond_wait(&handle->woken, &handle->mutex);
        else if (pthread_cond_timedwait(&handle->woken, &handle->mutex, &until) == ETIMEDOUT)
            break;
    }
    bool aborted = handle->aborted;
    pthread_mutex_unlock(&handle->mutex);
    return aborted;
}

/* One run: what was asked and what has come of it. */
struct run {
    struct handle *handle;
    void *user;
    int mode, limit;    /* new tokens; 0 or less: as many as fit */
    bool babbles;       /* top_k is nonsense */
    int32_t *own;       /* tokens of a prompt, to be freed */
    const int32_t *tokens;
    char *text;         /* the tokens that are bytes, 0 for the others; NULL: not needed */
    int count;
    enum fault fault;
    double started, prefilled;
};

static int finish(struct run *run, int generated) {
    struct result result = {0};
#if SINCE(C)
    double ended = now_ms();
    result.perf.prefill_time_ms = (float)(run->prefilled - run->started);
    result.perf.prefill_tokens = run->count;
    result.perf.generate_time_ms = (float)(ended - run->prefilled);
    result.perf.generate_tokens = generated;
    char line[256];
    FILE *status = fopen("/proc/self/status", "r");
    while (status && fgets(line, sizeof line, status))
        if (!strncmp(line, "VmHWM:", 6)) {
            result.perf.memory_usage_mb = (float)atol(line + 6) / 1024;
            break;
        }
    if (status)
        fclose(status);
#endif
    const char *level = getenv("RKLLM_LOG_LEVEL");
    if (level && atoi(level) >= 1)
        tell("Prefill %.2f ms, %d tokens; Generate %d token", run->prefilled - run->started, run->count, generated);
    pthread_mutex_lock(&run->handle->mutex);
    run->handle->finishing = true;
    pthread_mutex_unlock(&run->handle->mutex);
    call(run->handle, run->user, FINISH, &result, NULL);
    return 0;
}

static int stopped(struct run *run) {
    struct result result = {0};
    pthread_mutex_lock(&run->handle->mutex);
    run->handle->finishing = true;
    pthread_mutex_unlock(&run->handle->mutex);
    call(run->handle, run->user, ERROR, &result, NULL);
    return refuse("run is aborted");
}

/* Bytes as tokens; the end mark may stand in the text. */
static int tokenize(struct run *run, const char *prompt) {
    struct handle *handle = run->handle;
    const char *parts[] = {handle->template[0], handle->template[1], prompt, handle->template[2]};
    static const char mark[] = "<|endoftext|>";
    size_t room = 0;
    for (int i = 0; i < 4; i++)
        room += strlen(parts[i]);
    run->own = malloc((room + 1) * sizeof *run->own);
    if (!run->own)
        crash("out of memory");
    for (int i = 0; i < 4; i++)
        for (const char *at = parts[i]; *at;) {
            bool end = handle->model.eos >= 0 && !strncmp(at, mark, sizeof mark - 1);
            run->own[run->count++] = end ? (int32_t)handle->model.eos : (unsigned char)*at;
            at += end ? sizeof mark - 1 : 1;
        }
    run->tokens = run->own;
    return 0;
}

static int read_input(struct run *run, const struct input *input) {
    switch (input->input_type) {
    case PROMPT:
    case TOKEN:
        break;
    case EMBED:
    case MULTIMODAL:
        return refuse("input type %d is not simulated", input->input_type);
    default:
        return refuse("invalid input type: %d", input->input_type);
    }
#if SINCE(C)
    if (touch(input->role) > 64)
        return refuse("invalid role");
#endif
    if (input->input_type == PROMPT) {
        if (!input->prompt_input)
            return refuse("prompt is null");
        return tokenize(run, input->prompt_input);
    }
    run->tokens = input->token_input.input_ids;
    size_t count = input->token_input.n_tokens;
    run->count = count > 1000000000 ? 1000000000 : (int)count;
    return 0;
}

static int read_infer(struct run *run, const struct infer_param *infer) {
    struct handle *handle = run->handle;
    run->mode = infer->mode;
    if (run->mode < GENERATE || run->mode > LAST_MODE)
        return refuse("invalid infer mode: %d", run->mode);
    const char *adapter = infer->lora_params ? infer->lora_params->lora_adapter_name : NULL;
    if (adapter && (!handle->lora || strcmp(adapter, handle->lora)))
        return refuse("lora adapter %s is not loaded", adapter);
    if (infer->prompt_cache_params && infer->prompt_cache_params->save_prompt_cache)
        touch(infer->prompt_cache_params->prompt_cache_path);
    int top_k = handle->top_k;
    run->limit = handle->max_new_tokens;
#if SINCE(D)
    run->limit = infer->max_new_tokens;
    if (infer->sampling_params)
        top_k = infer->sampling_params->top_k;
#endif
    run->babbles = top_k < 0 || top_k > 1000000;
    return 0;
}

static void draw(struct run *run) {
    const struct faults *faults = &run->handle->faults;
    static uint64_t chance; /* of this process */
    pthread_mutex_lock(&handles_mutex);
    if (!chance) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        chance = mixed((uint64_t)getpid() << 32 ^ (uint64_t)now.tv_sec * 1000000007u ^ (uint64_t)now.tv_nsec);
    }
    uint64_t number = ++runs;
    pthread_mutex_unlock(&handles_mutex);
    run->fault = NO_FAULT;
    if (!faults->there)
        return;
    for (int i = 0; i < NO_FAULT && faults->any_on; i++)
        if (*faults->on[i] && found_at(run->text, run->count, faults->on[i], 0) >= 0) {
            run->fault = (enum fault)i;
            return;
        }
    double drawn = (double)(mixed(mixed(faults->seeded ? faults->seed : chance) + number) >> 11) / 9007199254740992.0;
    for (int i = 0; i < NO_FAULT; i++) {
        if (drawn < faults->odds[i]) {
            run->fault = (enum fault)i;
            return;
        }
        drawn -= faults->odds[i];
    }
}

static void print_prompt(const struct run *run) {
    const char *level = getenv("RKLLM_LOG_LEVEL");
    if (!level || atoi(level) < 2)
        return;
    fputs("I rkllm: prompt tokens: [", stdout);
    for (int i = 0; i < run->count; i++)
        printf("%s%d", i ? ", " : "", (int)run->tokens[i]);
    fputs("]\nI rkllm: prompt text: ", stdout);
    for (int i = 0; i < run->count; i++)
        if (run->tokens[i] < 256)
            putchar(run->tokens[i]);
    putchar('\n');
    fflush(stdout);
}

static void leak(const struct handle *handle) {
    static void *volatile lost;
    long kilobytes = handle->faults.leak_kb >= 0 ? handle->faults.leak_kb : handle->model.leak_kb;
    if (kilobytes > 0 && (lost = malloc((size_t)kilobytes * 1024)))
        memset(lost, 1, (size_t)kilobytes * 1024);
}

static int hidden_states(struct run *run) {
    struct handle *handle = run->handle;
    size_t dim = (size_t)handle->model.dim, floats = dim * (size_t)run->count;
    float *rows = open_data(handle, floats), *last = rows + floats - dim;
    read_tokens(&handle->context, run->tokens, run->count, rows);
    switch (run->fault) {
    case NOT_A_NUMBER:
        last[dim / 3] = NAN;
        break;
    case ZERO:
        memset(rows, 0, floats * sizeof *rows);
        break;
    case STALE:
        if (handle->has_row_before)
            memcpy(last, handle->row_before, dim * sizeof *last);
        break;
    default:
        break;
    }
    memcpy(handle->row_before, last, dim * sizeof *last);
    handle->has_row_before = true;
    run->prefilled = now_ms();

    struct result result = {0};
    int answer = call(handle, run->user, NORMAL, &result, "");
    bool stop = answer == 1, aborted = is_aborted(handle);
    if (!stop && !aborted) {
        result.last_hidden_layer = (struct last_hidden_layer){rows, (int)dim, run->count - (run->fault == SHORT)};
        answer = call(handle, run->user, SINCE(B0) ? NORMAL : LAST_HIDDEN_LAYER, &result, NULL);
        stop = answer == 1;
        aborted = is_aborted(handle);
    }
    close_data(handle);
    if (SINCE(C) && !(SINCE(D) && answer == 2))
        leak(handle);
    return aborted ? stopped(run) : stop ? 0 : finish(run, 1);
}

#if SINCE(B0)
static int next_logits(struct run *run) {
    struct handle *handle = run->handle;
    const struct model *model = &handle->model;
    if (model->yes >= model->vocab || model->no >= model->vocab)
        return refuse("yes and no are not in the vocabulary");
    uint64_t left = handle->context.tokens ? handle->context.all : 0;
    read_tokens(&handle->context, run->tokens, run->count, NULL);
    float agreement = overlap(run->text, run->count);
    float apart = agreement < 0 ? -3.0f : 12.0f * agreement - 6.0f;
    if (left) /* an older text stands before this one */
        apart += (float)(mixed(left) >> 40) / 2097152.0f - 4.0f;
    int room = handle->max_context - run->count, step = 0;
    int steps = run->limit > 0 && run->limit < room ? run->limit : room;
    for (; step < steps; step++) {
        float *logits = open_data(handle, (size_t)model->vocab);
        for (long i = 0; i < model->vocab; i++)
            logits[i] = (float)((int)(mixed((uint64_t)i + handle->context.all) >> 40) - (1 << 23)) / 16777216.0f;
        if (step == 0) {
            logits[model->yes] = apart / 2;
            logits[model->no] = -apart / 2;
            run->prefilled = now_ms();
        }
        if (run->fault == NOT_A_NUMBER)
            logits[model->yes] = NAN;
        if (run->fault == ZERO)
            memset(logits, 0, (size_t)model->vocab * sizeof *logits);
        struct result result = {0};
        result.logits = (struct logits){logits, (int)model->vocab, 1 - (run->fault == SHORT)};
        int answer = call(handle, run->user, NORMAL, &result, NULL);
        close_data(handle);
        if (answer == 1)
            return 0;
        if (is_aborted(handle) || (step + 1 < steps && passed(handle, (double)model->us_per_token / 1e3)))
            return stopped(run);
        handle->context.all = mixed(handle->context.all);
        handle->context.tokens += step > 0;
    }
    return finish(run, step);
}
#endif

static int generate(struct run *run) {
    static const char *const words[] = {"This", " is", " a", " simulated", " answer", ".", " The", " end"};
    struct handle *handle = run->handle;
    read_tokens(&handle->context, run->tokens, run->count, NULL);
    run->prefilled = now_ms();
    int step = 0, steps = run->limit > 0 && run->limit < 8 ? run->limit : 8;
    for (; step < steps; step++) {
        struct result result = {0};
        if (step == 1) /* a character that is not complete yet */
            call(handle, run->user, WAITING, &result, NULL);
        result.token_id = run->babbles ? (int32_t)handle->model.vocab - 1 : 'a' + step;
        if (call(handle, run->user, NORMAL, &result, run->babbles ? "\xEF\xBF\xBD" : words[step]) == 1)
            return 0;
        if (is_aborted(handle) || passed(handle, (double)handle->model.us_per_token / 1e3))
            return stopped(run);
        handle->context.tokens++;
    }
    return finish(run, step);
}

static int checked_run(struct run *run, const struct input *input, const struct infer_param *infer) {
    struct handle *handle = run->handle;
    if (!handle->callable)
        crash("the callback is no function");
    if (read_infer(run, infer) || read_input(run, input))
        return -1;
    if (handle->n_batch < 1 || handle->n_batch > 8)
        crash("n_batch is nonsense: inputs were read that do not exist");
    if (handle->n_batch > 1) {
        if (run->mode == GENERATE)
            return refuse("n_batch > 1 is not simulated");
        fputs("rkllm: Getting the logits is not supported for multiple batches.\n", stderr);
        return -1;
    }
    if (handle->cross_attention)
        return refuse("cross attention is on and its parameters are not set");
    if (run->count == 0)
        return refuse("input is empty");

    struct context *context = &handle->context;
    if (!SINCE(B0) && !handle->model.contaminates)
        context_clear(context);
    if (context->tokens + run->count > handle->max_context - MARGIN) {
        refuse("prompt greater than max context (prompt: %d tokens, max context: %d)", context->tokens + run->count,
               handle->max_context - MARGIN);
        run->prefilled = run->started;
        return finish(run, 0);
    }
    for (int i = 0; i < run->count; i++)
        if (run->tokens[i] < 0 || run->tokens[i] >= handle->model.vocab)
            crash("token id beyond the vocabulary");
    print_prompt(run);
    if (run->mode == LOGITS || handle->faults.any_on) {
        run->text = malloc((size_t)run->count);
        for (int i = 0; run->text && i < run->count; i++)
            run->text[i] = run->tokens[i] < 256 ? (char)run->tokens[i] : 0;
        if (!run->text)
            crash("out of memory");
    }
    draw(run);

    double ms = handle->faults.run_ms + (double)handle->model.us_per_token / 1e3 * (context->tokens + run->count);
    if (passed(handle, run->fault == HANG ? -1 : ms) || run->fault == FAIL) {
        read_tokens(context, run->tokens, run->count, NULL);
        return run->fault == FAIL ? refuse("failed to submit!") : stopped(run);
    }
    switch (run->fault) {
    case CRASH:
        crash("as asked for");
    case SILENT:
        read_tokens(context, run->tokens, run->count, NULL);
        run->prefilled = now_ms();
        return finish(run, 0);
    default:
#if SINCE(B0)
        if (run->mode == LOGITS)
            return next_logits(run);
#endif
        return run->mode == HIDDEN ? hidden_states(run) : generate(run);
    }
}

static int run_here(struct handle *handle, const struct input *input, const struct infer_param *infer, void *user) {
    struct run run = {.handle = handle, .user = user, .fault = NO_FAULT, .started = now_ms()};
    int status = checked_run(&run, input, infer);
    free(run.own);
    free(run.text);
    pthread_mutex_lock(&handle->mutex);
    handle->running = handle->finishing = false;
    pthread_mutex_unlock(&handle->mutex);
    return status;
}

/* Wait for the thread of an asynchronous run, unless it is we. */
static void join(struct handle *handle) {
    if (!handle->has_thread)
        return;
    if (pthread_join(handle->thread, NULL))
        misused("called from a callback");
    handle->has_thread = false;
}

/* Nothing may be running; an asynchronous run that has told its end is waited for. */
static void must_be_idle(struct handle *handle, const char *otherwise) {
    pthread_mutex_lock(&handle->mutex);
    bool busy = handle->running && !(handle->has_thread && handle->finishing);
    pthread_mutex_unlock(&handle->mutex);
    if (busy)
        misused(otherwise);
    join(handle);
}

static void begin(struct handle *handle) {
    must_be_idle(handle, "a run was started while another one is running");
    pthread_mutex_lock(&handle->mutex);
    if (handle->running)
        misused("a run was started while another one is running");
    handle->running = true;
    handle->aborted = false;
    read_faults(&handle->faults, handle->path);
    pthread_mutex_unlock(&handle->mutex);
}

struct job {
    struct handle *handle;
    struct input input;
    struct infer_param infer;
    void *user;
};

static void *work(void *given) {
    struct job *job = given;
    run_here(job->handle, &job->input, &job->infer, job->user);
    free(job);
    return NULL;
}

static int run_later(struct handle *handle, const struct input *input, const struct infer_param *infer, void *user) {
    struct job *job = malloc(sizeof *job);
    if (!job)
        crash("out of memory");
    *job = (struct job){handle, *input, *infer, user}; /* what they point to must stay where it is */
    begin(handle);
    handle->has_thread = true;
    if (pthread_create(&handle->thread, NULL, work, job))
        crash("no thread");
    return 0;
}

EXPORT int rkllm_run(void *given, struct input *input, struct infer_param *infer, void *user) {
    struct handle *handle = known(given);
    if (!handle)
        return -1;
    if (handle->is_async)
        return run_later(handle, input, infer, user);
    begin(handle);
    return run_here(handle, input, infer, user);
}

EXPORT int rkllm_run_async(void *given, struct input *input, struct infer_param *infer, void *user) {
    struct handle *handle = known(given);
    return handle ? run_later(handle, input, infer, user) : -1;
}

EXPORT int rkllm_abort(void *given) {
    struct handle *handle = known(given);
    if (!handle)
        return -1;
    pthread_mutex_lock(&handle->mutex);
    if (handle->running && !handle->faults.deaf) {
        handle->aborted = true;
        pthread_cond_broadcast(&handle->woken);
    }
    pthread_mutex_unlock(&handle->mutex);
    return 0;
}

EXPORT int rkllm_is_running(void *given) {
    struct handle *handle = known(given);
    if (!handle)
        return -1;
    pthread_mutex_lock(&handle->mutex);
    bool running = handle->running;
    pthread_mutex_unlock(&handle->mutex);
    return SINCE(D) ? running : !running; /* the headers say so */
}

EXPORT int rkllm_destroy(void *given) {
    struct handle *handle = known(given);
    if (!handle)
        return -1;
    must_be_idle(handle, "destroyed while running");
    pthread_mutex_lock(&handles_mutex);
    struct handle **at = &handles;
    while (*at != handle)
        at = &(*at)->next;
    *at = handle->next;
    pthread_mutex_unlock(&handles_mutex);
    pthread_mutex_destroy(&handle->mutex);
    pthread_cond_destroy(&handle->woken);
    free_handle(handle);
    return 0;
}

/* ---- the rest ---- */

#if SINCE(C)
EXPORT int rkllm_clear_kv_cache(void *given, int keep_system_prompt, int *start_pos, int *end_pos) {
    struct handle *handle = known(given);
    (void)keep_system_prompt; /* there is none */
    if (!handle)
        return -1;
    must_be_idle(handle, "KV cache cleared while running");
    if (start_pos || end_pos) {
        int start = *(volatile int *)start_pos, end = *(volatile int *)end_pos;
        if (start < 0 || end < start || end > handle->max_context)
            crash("KV cache cleared from nonsense to nonsense");
        if (start > 0 || end < handle->context.tokens)
            return refuse("only all of the KV cache can be cleared");
    }
    context_clear(&handle->context);
    return 0;
}
#elif SINCE(B0)
EXPORT int rkllm_clear_kv_cache(void *given, int keep_system_prompt) {
    struct handle *handle = known(given);
    (void)keep_system_prompt;
    if (!handle)
        return -1;
    must_be_idle(handle, "KV cache cleared while running");
    context_clear(&handle->context);
    return 0;
}
#endif

#if SINCE(B0)
EXPORT int rkllm_set_chat_template(void *given, const char *system, const char *prefix, const char *postfix) {
    struct handle *handle = known(given);
    const char *const parts[3] = {system, prefix, postfix};
    if (!handle || !system || !prefix || !postfix)
        return -1;
    for (int i = 0; i < 3; i++) {
        free(handle->template[i]);
        handle->template[i] = strdup(parts[i]);
    }
    return 0;
}
#endif

#if SINCE(C)
EXPORT int rkllm_get_kv_cache_size(void *given, int *sizes) {
    struct handle *handle = known(given);
    if (!handle)
        return -1;
    for (int i = 0; i < handle->n_batch; i++)
        sizes[i] = i ? 0 : handle->context.tokens;
    return 0;
}

EXPORT int rkllm_set_function_tools(void *given, const char *system, const char *tools, const char *answer) {
    return known(given) && touch(system) + touch(tools) + touch(answer) >= 0 ? 0 : -1;
}

EXPORT int rkllm_set_cross_attn_params(void *given, struct cross_attn_param *param) {
    struct handle *handle = known(given);
    return handle && handle->cross_attention && param->num_tokens > 0 ? 0 : -1;
}
#endif

EXPORT int rkllm_load_lora(void *given, struct lora_adapter *adapter) {
    struct handle *handle = known(given);
    if (!handle || !adapter || !adapter->lora_adapter_path || !adapter->lora_adapter_name)
        return -1;
    if (access(adapter->lora_adapter_path, R_OK))
        return refuse("failed to open lora adapter");
    free(handle->lora);
    handle->lora = strdup(adapter->lora_adapter_name);
    return 0;
}

EXPORT int rkllm_load_prompt_cache(void *given, const char *path) {
    return known(given) && path && !access(path, R_OK) ? 0 : -1;
}

EXPORT int rkllm_release_prompt_cache(void *given) { return known(given) ? 0 : -1; }
