/* What crosses the border of librkllmrt.so, in our own words: one layout per family of releases.

   -DFAMILY=A   1.1.0 to 1.1.4
   -DFAMILY=B0  1.2.0
   -DFAMILY=B   1.2.1b1
   -DFAMILY=C   1.2.1, 1.2.2, 1.2.3
   -DFAMILY=D   1.3.0

   Every offset and size is asserted below, for 64-bit (aarch64 = x86-64) and 32-bit ARM, so the simulator cannot drift.
   Bools are uint8_t: a caller with a wrong layout may put any byte there. */
#ifndef ABI_H
#define ABI_H

#include <stddef.h>
#include <stdint.h>

#define FAMILY_A 1
#define FAMILY_B0 2
#define FAMILY_B 3
#define FAMILY_C 4
#define FAMILY_D 5
#define NUMBER_OF_(letter) FAMILY_##letter
#define NUMBER_OF(letter) NUMBER_OF_(letter)
#ifndef FAMILY
#error "say which family: -DFAMILY=A, B0, B, C or D"
#endif
#define SINCE(letter) (NUMBER_OF(FAMILY) >= FAMILY_##letter)
#if !SINCE(A)
#error "FAMILY must be A, B0, B, C or D"
#endif

enum state { NORMAL = 0, WAITING = 1, FINISH = 2, ERROR = 3, LAST_HIDDEN_LAYER = 4 /* A only */ };
enum input_type { PROMPT = 0, TOKEN = 1, EMBED = 2, MULTIMODAL = 3 };
enum mode { GENERATE = 0, HIDDEN = 1, LOGITS = 2 /* not in A */ };

struct extend_param {
    int32_t base_domain_id;
#if SINCE(B0)
    int8_t embed_flash;
    int8_t enabled_cpus_num;
    uint32_t enabled_cpus_mask;
#endif
#if SINCE(C)
    uint8_t n_batch;
    int8_t use_cross_attn;
    uint8_t reserved[104];
#elif SINCE(B0)
    uint8_t reserved[106];
#else
    uint8_t reserved[112];
#endif
};

struct param {
    const char *model_path;
    int32_t max_context_len;
    int32_t max_new_tokens;
    int32_t top_k;
#if SINCE(B0)
    int32_t n_keep;
#endif
    float top_p, temperature, repeat_penalty, frequency_penalty, presence_penalty;
    int32_t mirostat;
    float mirostat_tau, mirostat_eta;
    uint8_t skip_special_token;
#if SINCE(D)
    uint8_t ignore_eos_token;
#endif
    uint8_t is_async;
#if !SINCE(D)
    const char *img_start, *img_end, *img_content;
#endif
    struct extend_param extend_param;
};

struct lora_adapter {
    const char *lora_adapter_path, *lora_adapter_name;
    float scale;
};

struct embed_input {
    float *embed;
    size_t n_tokens;
};

struct token_input {
    int32_t *input_ids;
    size_t n_tokens;
};

struct multimodal_input {
    char *prompt;
#if SINCE(D)
    struct {
        float *image_embed;
        size_t n_image_tokens, n_image;
        const char *image_start, *image_end, *image_content;
        size_t image_width, image_height;
    } image;
    struct {
        float *video_embed;
        size_t n_frame_tokens, n_frame_per_video, n_video;
        const char *video_start, *video_end, *video_content;
        size_t frame_width, frame_height;
    } video;
#else
    float *image_embed;
    size_t n_image_tokens;
#if SINCE(B)
    size_t n_image, image_width, image_height;
#endif
#endif
};

struct input {
#if SINCE(C)
    const char *role;
    uint8_t enable_thinking;
#endif
    int32_t input_type;
    union {
        const char *prompt_input;
        struct embed_input embed_input;
        struct token_input token_input;
        struct multimodal_input multimodal_input;
    };
};

struct lora_param {
    const char *lora_adapter_name;
};

struct prompt_cache_param {
    int save_prompt_cache;
    const char *prompt_cache_path;
};

struct sampling_param {
    int32_t top_k;
    float top_p, temperature, repeat_penalty, frequency_penalty, presence_penalty;
    int32_t mirostat;
    float mirostat_tau, mirostat_eta;
};

struct infer_param {
    int32_t mode;
    struct lora_param *lora_params;
    struct prompt_cache_param *prompt_cache_params;
#if SINCE(D)
    struct sampling_param *sampling_params;
#endif
#if SINCE(B0)
    int keep_history;
#endif
#if SINCE(D)
    int32_t max_new_tokens;
#endif
};

struct last_hidden_layer {
    const float *hidden_states;
    int embd_size, num_tokens;
};

struct logits {
    const float *logits;
    int vocab_size, num_tokens;
};

struct perf {
    float prefill_time_ms;
    int prefill_tokens;
    float generate_time_ms;
    int generate_tokens;
    float memory_usage_mb;
};

struct result {
    const char *text;
    int32_t token_id;
    struct last_hidden_layer last_hidden_layer;
#if SINCE(B0)
    struct logits logits;
#endif
#if SINCE(C)
    struct perf perf;
#endif
};

struct cross_attn_param {
    float *encoder_k_cache, *encoder_v_cache, *encoder_mask;
    int32_t *encoder_pos;
    int num_tokens;
};

#if SINCE(C)
typedef int result_callback(struct result *result, void *userdata, int state);
#else
typedef void result_callback(struct result *result, void *userdata, int state);
#endif

struct callbacks {
    result_callback *result_callback;
    void *result_userdata;
    int (*tokenizer_callback)(void *userdata, const char *text, int32_t length, int32_t *tokens, int32_t most);
    void *tokenizer_userdata;
    int (*embed_callback)(void *userdata, int32_t *tokens, uint64_t count, void *embed, uint64_t length);
    void *embed_userdata;
};

#define PICK(lp64, ilp32) (sizeof(void *) == 8 ? (lp64) : (ilp32))
#define SIZE(type, lp64, ilp32) _Static_assert(sizeof(struct type) == PICK(lp64, ilp32), "size of " #type)
#define AT(type, field, lp64, ilp32) \
    _Static_assert(offsetof(struct type, field) == PICK(lp64, ilp32), "offset of " #type "." #field)

AT(extend_param, base_domain_id, 0, 0);
#if SINCE(C)
AT(extend_param, n_batch, 12, 12);
AT(extend_param, use_cross_attn, 13, 13);
AT(extend_param, reserved, 14, 14);
#elif SINCE(B0)
AT(extend_param, reserved, 12, 12);
#else
AT(extend_param, reserved, 4, 4);
SIZE(extend_param, 116, 116);
#endif
#if SINCE(B0)
AT(extend_param, embed_flash, 4, 4);
AT(extend_param, enabled_cpus_num, 5, 5);
AT(extend_param, enabled_cpus_mask, 8, 8);
SIZE(extend_param, 120, 120);
#endif

AT(param, model_path, 0, 0);
AT(param, max_context_len, 8, 4);
AT(param, max_new_tokens, 12, 8);
AT(param, top_k, 16, 12);
#if SINCE(B0)
AT(param, n_keep, 20, 16);
AT(param, top_p, 24, 20);
AT(param, temperature, 28, 24);
AT(param, repeat_penalty, 32, 28);
AT(param, frequency_penalty, 36, 32);
AT(param, presence_penalty, 40, 36);
AT(param, mirostat, 44, 40);
AT(param, mirostat_tau, 48, 44);
AT(param, mirostat_eta, 52, 48);
AT(param, skip_special_token, 56, 52);
#else
AT(param, top_p, 20, 16);
AT(param, temperature, 24, 20);
AT(param, repeat_penalty, 28, 24);
AT(param, frequency_penalty, 32, 28);
AT(param, presence_penalty, 36, 32);
AT(param, mirostat, 40, 36);
AT(param, mirostat_tau, 44, 40);
AT(param, mirostat_eta, 48, 44);
AT(param, skip_special_token, 52, 48);
#endif
#if SINCE(D)
AT(param, ignore_eos_token, 57, 53);
AT(param, is_async, 58, 54);
AT(param, extend_param, 60, 56);
SIZE(param, 184, 176);
#elif SINCE(B0)
AT(param, is_async, 57, 53);
AT(param, img_start, 64, 56);
AT(param, img_end, 72, 60);
AT(param, img_content, 80, 64);
AT(param, extend_param, 88, 68);
SIZE(param, 208, 188);
#else
AT(param, is_async, 53, 49);
AT(param, img_start, 56, 52);
AT(param, img_end, 64, 56);
AT(param, img_content, 72, 60);
AT(param, extend_param, 80, 64);
SIZE(param, 200, 180);
#endif

AT(lora_adapter, lora_adapter_path, 0, 0);
AT(lora_adapter, lora_adapter_name, 8, 4);
AT(lora_adapter, scale, 16, 8);
SIZE(lora_adapter, 24, 12);
AT(embed_input, embed, 0, 0);
AT(embed_input, n_tokens, 8, 4);
SIZE(embed_input, 16, 8);
AT(token_input, input_ids, 0, 0);
AT(token_input, n_tokens, 8, 4);
SIZE(token_input, 16, 8);

AT(multimodal_input, prompt, 0, 0);
#if SINCE(D)
AT(multimodal_input, image, 8, 4);
AT(multimodal_input, image.image_embed, 8, 4);
AT(multimodal_input, image.n_image_tokens, 16, 8);
AT(multimodal_input, image.n_image, 24, 12);
AT(multimodal_input, image.image_start, 32, 16);
AT(multimodal_input, image.image_end, 40, 20);
AT(multimodal_input, image.image_content, 48, 24);
AT(multimodal_input, image.image_width, 56, 28);
AT(multimodal_input, image.image_height, 64, 32);
AT(multimodal_input, video, 72, 36);
AT(multimodal_input, video.video_embed, 72, 36);
AT(multimodal_input, video.n_frame_tokens, 80, 40);
AT(multimodal_input, video.n_frame_per_video, 88, 44);
AT(multimodal_input, video.n_video, 96, 48);
AT(multimodal_input, video.video_start, 104, 52);
AT(multimodal_input, video.video_end, 112, 56);
AT(multimodal_input, video.video_content, 120, 60);
AT(multimodal_input, video.frame_width, 128, 64);
AT(multimodal_input, video.frame_height, 136, 68);
SIZE(multimodal_input, 144, 72);
#else
AT(multimodal_input, image_embed, 8, 4);
AT(multimodal_input, n_image_tokens, 16, 8);
#if SINCE(B)
AT(multimodal_input, n_image, 24, 12);
AT(multimodal_input, image_width, 32, 16);
AT(multimodal_input, image_height, 40, 20);
SIZE(multimodal_input, 48, 24);
#else
SIZE(multimodal_input, 24, 12);
#endif
#endif

#if SINCE(C)
AT(input, role, 0, 0);
AT(input, enable_thinking, 8, 4);
AT(input, input_type, 12, 8);
AT(input, prompt_input, 16, 12);
AT(input, embed_input, 16, 12);
AT(input, token_input, 16, 12);
AT(input, multimodal_input, 16, 12);
#else
AT(input, input_type, 0, 0);
AT(input, prompt_input, 8, 4);
AT(input, embed_input, 8, 4);
AT(input, token_input, 8, 4);
AT(input, multimodal_input, 8, 4);
#endif
#if SINCE(D)
SIZE(input, 160, 84);
#elif SINCE(C)
SIZE(input, 64, 36);
#elif SINCE(B)
SIZE(input, 56, 28);
#else
SIZE(input, 32, 16);
#endif

AT(lora_param, lora_adapter_name, 0, 0);
SIZE(lora_param, 8, 4);
AT(prompt_cache_param, save_prompt_cache, 0, 0);
AT(prompt_cache_param, prompt_cache_path, 8, 4);
SIZE(prompt_cache_param, 16, 8);

AT(infer_param, mode, 0, 0);
AT(infer_param, lora_params, 8, 4);
AT(infer_param, prompt_cache_params, 16, 8);
#if SINCE(D)
AT(infer_param, sampling_params, 24, 12);
AT(infer_param, keep_history, 32, 16);
AT(infer_param, max_new_tokens, 36, 20);
SIZE(infer_param, 40, 24);
#elif SINCE(B0)
AT(infer_param, keep_history, 24, 12);
SIZE(infer_param, 32, 16);
#else
SIZE(infer_param, 24, 12);
#endif

AT(last_hidden_layer, hidden_states, 0, 0);
AT(last_hidden_layer, embd_size, 8, 4);
AT(last_hidden_layer, num_tokens, 12, 8);
SIZE(last_hidden_layer, 16, 12);
AT(logits, logits, 0, 0);
AT(logits, vocab_size, 8, 4);
AT(logits, num_tokens, 12, 8);
SIZE(logits, 16, 12);
AT(perf, prefill_time_ms, 0, 0);
AT(perf, prefill_tokens, 4, 4);
AT(perf, generate_time_ms, 8, 8);
AT(perf, generate_tokens, 12, 12);
AT(perf, memory_usage_mb, 16, 16);
SIZE(perf, 20, 20);

AT(result, text, 0, 0);
AT(result, token_id, 8, 4);
AT(result, last_hidden_layer, 16, 8);
#if SINCE(B0)
AT(result, logits, 32, 20);
#endif
#if SINCE(C)
AT(result, perf, 48, 32);
SIZE(result, 72, 52);
#elif SINCE(B0)
SIZE(result, 48, 32);
#else
SIZE(result, 32, 20);
#endif

AT(cross_attn_param, encoder_k_cache, 0, 0);
AT(cross_attn_param, encoder_v_cache, 8, 4);
AT(cross_attn_param, encoder_mask, 16, 8);
AT(cross_attn_param, encoder_pos, 24, 12);
AT(cross_attn_param, num_tokens, 32, 16);
SIZE(cross_attn_param, 40, 20);
AT(sampling_param, top_k, 0, 0);
AT(sampling_param, top_p, 4, 4);
AT(sampling_param, temperature, 8, 8);
AT(sampling_param, repeat_penalty, 12, 12);
AT(sampling_param, frequency_penalty, 16, 16);
AT(sampling_param, presence_penalty, 20, 20);
AT(sampling_param, mirostat, 24, 24);
AT(sampling_param, mirostat_tau, 28, 28);
AT(sampling_param, mirostat_eta, 32, 32);
SIZE(sampling_param, 36, 36);
AT(callbacks, result_callback, 0, 0);
AT(callbacks, result_userdata, 8, 4);
AT(callbacks, tokenizer_callback, 16, 8);
AT(callbacks, tokenizer_userdata, 24, 12);
AT(callbacks, embed_callback, 32, 16);
AT(callbacks, embed_userdata, 40, 20);
SIZE(callbacks, 48, 24);

#endif
