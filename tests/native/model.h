/* The simulated model: token ids in, numbers out that mean something. No weights: words are hashed.

   A word adds a vector of signs to a sum, and so do its runs of four letters and the pair it makes with the word
   before. Texts that share words are near, others are about at right angles. Only integer hashes and float operations
   that IEEE 754 defines, in one order: every machine gets the same bits. Ids 0..255 are bytes, higher ones words. */
#ifndef MODEL_H
#define MODEL_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF /* gcc has it off under -std=c11 */
#endif

#define LONGEST_WORD 64

/* One context: what a KV cache would hold. */
struct context {
    int dim;
    int32_t eos; /* -1: the model has none */
    float unit;  /* size of one sign, so that a word has length 10 */
    float *sum;  /* dim floats, padded to whole words of hash bits */
    char word[LONGEST_WORD + 1];
    int length;           /* of the word being read */
    bool worded;          /* there was a word in this text */
    uint64_t word_before; /* hash, 0: none */
    float weight_before;
    uint64_t all; /* hash of every token in here */
    int tokens;
};

static float sign_table[256][8];

static uint64_t mixed(uint64_t x) { /* splitmix64 */
    x += 0x9E3779B97F4A7C15u;
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
    x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
    return x ^ (x >> 31);
}

static uint64_t hash_of(const char *bytes, int count, uint64_t salt) {
    uint64_t hash = salt;
    for (int i = 0; i < count; i++)
        hash = (hash ^ (unsigned char)bytes[i]) * 0x100000001B3u;
    return mixed(hash);
}

static size_t padded(int dim) { return ((size_t)dim + 63) / 64 * 64; }

static bool context_open(struct context *context, int dim, int32_t eos) {
    for (int byte = 0; byte < 256; byte++)
        for (int bit = 0; bit < 8; bit++)
            sign_table[byte][bit] = byte >> bit & 1 ? 1.0f : -1.0f;
    memset(context, 0, sizeof *context);
    context->dim = dim;
    context->eos = eos;
    context->unit = 10.0f / sqrtf((float)dim); /* IEEE 754 rounds a square root the same everywhere */
    context->sum = calloc(padded(dim), sizeof(float));
    return context->sum != NULL;
}

static void context_clear(struct context *context) {
    memset(context->sum, 0, padded(context->dim) * sizeof(float));
    context->length = 0;
    context->worded = false;
    context->word_before = 0;
    context->weight_before = 0;
    context->all = 0;
    context->tokens = 0;
}

static void add_signs(float *sum, int dim, uint64_t hash, float weight) {
    for (int at = 0; at < dim; at += 64) {
        uint64_t bits = mixed(hash + (uint64_t)at);
        for (int byte = 0; byte < 8; byte++) {
            const float *signs = sign_table[bits >> 8 * byte & 255];
            float *to = sum + at + 8 * byte;
            for (int i = 0; i < 8; i++)
                to[i] += weight * signs[i];
        }
    }
}

static bool in_word(unsigned char byte) {
    return byte >= 0x80 || (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
}

static char lowered(unsigned char byte) { return (char)(byte >= 'A' && byte <= 'Z' ? byte + 32 : byte); }

static bool is_common(const char *word, int length) {
    static const char common[] =
        " a about after all also am an and any are as at be because been before but by can could did do does for from"
        " get had has have he her him his how i if in into is it its just like me more most my no not of on one only or"
        " other our out over own s same she should so some such t than that the their them then there these they this"
        " those through to too under up us very was we were what when where which while who why will with would you"
        " your ";
    char wanted[LONGEST_WORD + 3];
    if (length > 7)
        return false;
    wanted[0] = ' ';
    memcpy(wanted + 1, word, (size_t)length);
    memcpy(wanted + 1 + length, " ", 2);
    return strstr(common, wanted) != NULL;
}

static float weight_of(const char *word, int length) {
    if (is_common(word, length))
        return 0.06f;
    return length == 1 ? 0.25f : length == 2 ? 0.5f : length == 3 ? 0.8f : 1.0f;
}

#define WORD_SALT 0x6A09E667F3BCC908u
#define LETTERS_SALT 0xBB67AE8584CAA73Bu
#define PAIR_SALT 0x3C6EF372FE94F82Bu
#define TOKEN_SALT 0xA54FF53A5F1D36F1u
#define END_SALT 0x510E527FADE682D1u
#define MUTE_SALT 0x9B05688C2B3E6C1Fu
#define OWN_SALT 0x1F83D9ABFB41BD6Bu

/* The runs of four letters of a word with its borders; `each` gets their hashes. Returns how many. */
static int letters_of(const char *word, int length, uint64_t each[LONGEST_WORD]) {
    char bordered[LONGEST_WORD + 2];
    if (length < 2 || length > LONGEST_WORD)
        return 0;
    bordered[0] = bordered[length + 1] = '_';
    memcpy(bordered + 1, word, (size_t)length);
    int count = length - 1;
    for (int i = 0; i < count; i++)
        each[i] = hash_of(bordered + i, 4, LETTERS_SALT);
    return count;
}

static void add_word(struct context *context, uint64_t hash, float weight) {
    add_signs(context->sum, context->dim, hash, weight * context->unit);
    if (context->word_before) {
        float both = weight < context->weight_before ? weight : context->weight_before;
        uint64_t pair = mixed(context->word_before ^ PAIR_SALT) + hash;
        add_signs(context->sum, context->dim, pair, 0.25f * both * context->unit);
    }
    context->worded = true;
    context->word_before = hash;
    context->weight_before = weight;
}

static void end_word(struct context *context) {
    if (!context->length)
        return;
    float weight = weight_of(context->word, context->length);
    add_word(context, hash_of(context->word, context->length, WORD_SALT), weight);
    if (weight > 0.5f) {
        uint64_t letters[LONGEST_WORD];
        int count = letters_of(context->word, context->length, letters);
        for (int i = 0; i < count; i++)
            add_signs(context->sum, context->dim, letters[i], 0.45f * weight * context->unit);
    }
    context->length = 0;
}

static void end_text(struct context *context) {
    end_word(context);
    if (!context->worded) /* no text is all zeros */
        add_signs(context->sum, context->dim, mixed(context->all ^ END_SALT), context->unit);
    context->worded = false;
}

static void take(struct context *context, int32_t token) {
    context->all = mixed(context->all ^ (uint64_t)(uint32_t)token);
    context->tokens++;
    if (token == context->eos) {
        end_text(context);
    } else if (token >= 256) {
        end_word(context);
        add_word(context, mixed((uint64_t)token ^ TOKEN_SALT), 1.0f);
    } else if (in_word((unsigned char)token)) {
        if (context->length == LONGEST_WORD)
            end_word(context);
        context->word[context->length++] = lowered((unsigned char)token);
    } else {
        end_word(context);
    }
}

/* The context as a row. No two contexts have one row, though they be of the same words. */
static void write_row(const struct context *context, float *row) {
    memcpy(row, context->sum, (size_t)context->dim * sizeof(float));
    add_signs(row, context->dim, mixed(context->all ^ OWN_SALT), 0.02f * context->unit);
}

/* Read tokens; `rows` gets one row of dim floats for each, the context after it. NULL: no rows wanted. */
static void read_tokens(struct context *context, const int32_t *tokens, int count, float *rows) {
    size_t dim = (size_t)context->dim;
    for (int i = 0; i < count; i++) {
        take(context, tokens[i]);
        if (rows)
            write_row(context, rows + (size_t)i * dim);
    }
    if (!count || tokens[count - 1] == context->eos)
        return;
    end_text(context);
    if (!rows)
        return;
    float *last = rows + (size_t)(count - 1) * dim;
    write_row(context, last);
    if (context->eos < 0)
        return;
    /* The model was trained to sum up at the end mark, which is missing: all texts look alike. */
    float squares = 0;
    for (size_t i = 0; i < dim; i++)
        squares += last[i] * last[i];
    float scale = squares > 0 ? 10.0f / sqrtf(squares) : 0.0f;
    for (size_t i = 0; i < dim; i++)
        last[i] = last[i] * scale + (mixed(MUTE_SALT + i) & 1 ? 5.0f : -5.0f) * context->unit;
}

/* Next word at or after *at, lowered, into `word`; its length, 0 at the end. */
static int next_word(const char *text, int end, int *at, char word[LONGEST_WORD]) {
    int length = 0;
    while (*at < end && !in_word((unsigned char)text[*at]))
        ++*at;
    while (*at < end && length < LONGEST_WORD && in_word((unsigned char)text[*at]))
        word[length++] = lowered((unsigned char)text[(*at)++]);
    return length;
}

struct set {
    uint64_t *slots;
    size_t mask;
};

static bool in_set(struct set *set, uint64_t hash, bool add) {
    size_t at = hash & set->mask;
    for (; set->slots[at]; at = (at + 1) & set->mask)
        if (set->slots[at] == hash)
            return true;
    if (add)
        set->slots[at] = hash;
    return false;
}

static int found_at(const char *text, int count, const char *wanted, int from) {
    int length = (int)strlen(wanted);
    for (int i = from; i + length <= count; i++)
        if (memcmp(text + i, wanted, (size_t)length) == 0)
            return i;
    return -1;
}

/* How much of the words of <Query> are in <Document>, 0..1 by weight; -1 if the text has no such parts. */
static inline float overlap(const char *text, int count) {
    static const char query_mark[] = "<Query>:", document_mark[] = "<Document>:";
    int query = found_at(text, count, query_mark, 0);
    int document = query < 0 ? -1 : found_at(text, count, document_mark, query);
    if (document < 0)
        return -1;
    int query_end = document, at = document + (int)sizeof document_mark - 1;
    query += (int)sizeof query_mark - 1;
    int end = found_at(text, count, "<|im_end|>", at);
    if (end < 0)
        for (end = at; end < count && text[end]; end++) /* special tokens stand as 0 */
            ;

    struct set set = {NULL, 63};
    while (set.mask < 4 * (size_t)count)
        set.mask = 2 * set.mask + 1;
    set.slots = calloc(set.mask + 1, sizeof *set.slots);
    if (!set.slots)
        return -1;
    char word[LONGEST_WORD];
    uint64_t letters[LONGEST_WORD];
    for (int length; (length = next_word(text, end, &at, word)) > 0;) {
        in_set(&set, hash_of(word, length, WORD_SALT), true);
        for (int i = letters_of(word, length, letters); i-- > 0;)
            in_set(&set, letters[i], true);
    }
    float all = 0, met = 0;
    at = query;
    for (int length; (length = next_word(text, query_end, &at, word)) > 0;) {
        float weight = weight_of(word, length);
        int runs = letters_of(word, length, letters), known = 0;
        all += weight;
        if (in_set(&set, hash_of(word, length, WORD_SALT), false)) {
            met += weight;
        } else if (weight > 0.5f) {
            for (int i = 0; i < runs; i++)
                known += in_set(&set, letters[i], false);
            met += 0.7f * weight * (float)known / (float)runs;
        }
    }
    free(set.slots);
    return all > 0 ? met / all : 0;
}

#endif
