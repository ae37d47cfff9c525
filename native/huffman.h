/* Huffman decoding of baseline JPEG, a block at a time.
 *
 * Each symbol waits for the end of the one before it, so what counts is the length of that chain: one
 * look into a table says how many bits the next one or two codes take with their numbers; the numbers
 * are taken out beside the chain. Stuffed zeros are taken out beforehand, a segment between two
 * markers at a time.
 *
 * Safe on any input: tables are checked when they are built, places in a block before they are
 * written, and behind a segment lie more zeros than one block can take. */
#ifndef TESSERA_HUFFMAN_H
#define TESSERA_HUFFMAN_H

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

enum { LOOK = 10, DC_BITS = 11, AC_BITS = 10, LONGEST = 16, REFILLED = 56 };
enum { END = 64, LONG = 128 }; /* advances that are none: end of block, code longer than LOOK */
enum { PAD = 512 };            /* zeros behind a segment, in bytes */
_Static_assert(REFILLED - 2 * (LOOK + AC_BITS) >= LOOK, "two looks without a refill, and a third");
_Static_assert(PAD * 8 > LONGEST + DC_BITS + 63 * (LONGEST + AC_BITS) + 3 * 64, "too few zeros");

/* What the next LOOK bits begin with, a byte for each of
 *   0  bits of both symbols         1  places that both advance
 *   2  bits before the number       3  63 - bits of the number, of the first symbol
 *   4  bits before the number       5  63 - bits of the number, of the second symbol
 *   6  bits of the first symbol     7  places that it advances
 * A symbol is a code and the number behind it. Without a second symbol its number has no bits. */
typedef uint64_t Entry;

struct huffman {
    int defined, is_ac, size;
    uint8_t definition[LONGEST + 256]; /* as in the file: numbers of codes of 1 to 16 bits, symbols */
    Entry quick[1 << LOOK];
    int first_code[LONGEST + 1], first_place[LONGEST + 1];
};

struct bits {
    uint64_t word; /* the next bits, uppermost first */
    int count;     /* valid bits of word */
    const uint8_t *at, *end;
};

static inline unsigned field(Entry entry, int byte) { return entry >> (8 * byte) & 0xFF; }

static Entry entry_of(int symbol, int length, int is_ac) {
    uint64_t size = symbol & 15, advance = 1 + (symbol >> 4), bits = (uint64_t)length + size;
    if (is_ac && size == 0 && symbol != 0xF0) advance = END;
    return bits | advance << 8 | (uint64_t)length << 16 | (63 - size) << 24 | bits << 32 |
           (uint64_t)63 << 40 | bits << 48 | advance << 56;
}

/* Let entries tell of a second symbol where its code lies within the LOOK bits too. */
static void pair_entries(Entry *quick) {
    Entry single[1 << LOOK];
    memcpy(single, quick, sizeof single);
    for (unsigned i = 0; i < 1 << LOOK; i++) {
        Entry first = single[i];
        unsigned bits = field(first, 0);
        if (field(first, 1) >= END || bits >= LOOK) continue;
        Entry second = single[i << bits & ((1 << LOOK) - 1)];
        if (field(second, 1) == LONG || bits + field(second, 2) > LOOK) continue;
        quick[i] = (first & 0xFFFF0000FFFF0000) | (bits + field(second, 0)) | (Entry)(field(first, 1) + field(second, 1)) << 8 |
                   (Entry)(bits + field(second, 2)) << 32 | (Entry)field(second, 3) << 40;
    }
}

/* Build a table of `counts` [16] codes of 1 to 16 bits and the symbols behind them. Returns the number
 * of its symbols, or -1 for what is not a baseline table; `available` bytes of symbols are there. */
static int build_huffman(struct huffman *table, const uint8_t *counts, long available, int is_ac) {
    int total = 0, code = 0, place = 0;
    for (int i = 0; i < LONGEST; i++) total += counts[i];
    if (total > 256 || total > available) return -1;
    int size = LONGEST + total;
    if (table->size == size && table->is_ac == is_ac && memcmp(table->definition, counts, size) == 0) {
        table->defined = 1; /* many files have the same tables */
        return total;
    }
    table->defined = table->size = 0;
    table->is_ac = is_ac;
    memcpy(table->definition, counts, (size_t)size);
    for (int i = 0; i < 1 << LOOK; i++) table->quick[i] = (Entry)LONG << 8 | (Entry)LONG << 56;
    for (int length = 1; length <= LONGEST; length++, code <<= 1) {
        int codes = counts[length - 1];
        table->first_code[length] = code;
        table->first_place[length] = place;
        if (codes && code + codes >= 1 << length) return -1; /* none may be all ones */
        for (int i = 0; i < codes; i++, code++, place++) {
            int symbol = counts[LONGEST + place];
            if (is_ac ? (symbol & 15) > AC_BITS : symbol > DC_BITS) return -1;
            if (length > LOOK) continue;
            Entry *first = table->quick + (code << (LOOK - length));
            for (int rest = 0; rest < 1 << (LOOK - length); rest++)
                first[rest] = entry_of(symbol, length, is_ac);
        }
    }
    if (is_ac) pair_entries(table->quick);
    table->defined = 1;
    table->size = size;
    return total;
}

/* Copy up to the next marker, or to the end, without stuffed zeros. `clean` has room for all, for 32
 * bytes more and for the padding. Returns where it stopped. */
static const uint8_t *take_segment(const uint8_t *at, const uint8_t *end, uint8_t *clean,
                                   struct bits *bits) {
    uint8_t *to = clean;
    while (at < end) {
        const uint8_t *mark = at;
        for (; end - mark >= 32; mark += 32, to += 32) {
            __m256i bytes = _mm256_loadu_si256((const __m256i *)mark);
            _mm256_storeu_si256((__m256i *)to, bytes);
            unsigned found = (unsigned)_mm256_movemask_epi8(
                _mm256_cmpeq_epi8(bytes, _mm256_set1_epi8(-1)));
            if (!found) continue;
            mark += __builtin_ctz(found);
            to += __builtin_ctz(found);
            break;
        }
        while (mark < end && *mark != 0xFF) *to++ = *mark++;
        at = mark;
        if (end - at < 2 || at[1]) break;
        *to++ = 0xFF;
        at += 2;
    }
    memset(to, 0, PAD);
    *bits = (struct bits){.at = clean, .end = to};
    return at;
}

/* More bits were taken than there are. */
static int overrun(const struct bits *bits) { return (bits->at - bits->end) * 8 > bits->count; }

/* Bytes of the segment are left that belong to no block. */
static int left_over(const struct bits *bits) { return (bits->at - bits->end) * 8 + 8 <= bits->count; }

static inline void refill(struct bits *bits) {
    uint64_t next;
    memcpy(&next, bits->at, sizeof next);
    bits->word |= __builtin_bswap64(next) >> bits->count;
    bits->at += (63 - bits->count) >> 3;
    bits->count |= REFILLED;
}

static inline void drop(struct bits *bits, unsigned count) {
    bits->word <<= count & 63;
    bits->count -= (int)count;
}

/* The number behind `before` bits. JPEG's have no sign: with a first bit of 0 it is the complement,
 * negated. `shift` is 63 - its bits. */
static inline int number_of(uint64_t word, unsigned before, unsigned shift) {
    uint64_t from = word << (before & 63);
    uint64_t negative = (uint64_t)((int64_t)~from >> 63);
    uint64_t magnitude = (from ^ negative) >> 1 >> (shift & 63);
    return (int)((magnitude ^ negative) - negative);
}

static inline int first_number(uint64_t word, Entry entry) {
    return number_of(word, (unsigned)(entry >> 16), (unsigned)(entry >> 24));
}

static inline int second_number(uint64_t word, Entry entry) {
    return number_of(word, (unsigned)(entry >> 32), (unsigned)(entry >> 40));
}

/* Codes that are longer than LOOK. Returns 0 where there is no such code. */
static Entry long_entry(const struct huffman *table, uint64_t word) {
    for (int length = LOOK + 1; length <= LONGEST; length++) {
        int place = (int)(word >> (64 - length)) - table->first_code[length];
        if (place >= 0 && place < table->definition[length - 1])
            return entry_of(table->definition[LONGEST + table->first_place[length] + place], length,
                            table->is_ac);
    }
    return 0;
}

/* Read one block into `block`, [64] zeros; coefficient k of the zigzag goes to place order[k].
 * `last_dc` is the component's, and goes on. Returns the last k, or -1 for what is damaged or odd. */
static inline __attribute__((always_inline)) int read_block(const struct huffman *dc,
                                                            const struct huffman *ac,
                                                            struct bits *from, const uint8_t *order,
                                                            int16_t *block, int16_t *last_dc) {
    struct bits bits = *from;
    if (bits.at > bits.end + 8) return -1;
    refill(&bits);
    Entry entry = dc->quick[bits.word >> (64 - LOOK)];
    if (field(entry, 1) == LONG && !(entry = long_entry(dc, bits.word))) return -1;
    *last_dc = (int16_t)(*last_dc + first_number(bits.word, entry));
    block[0] = *last_dc;
    drop(&bits, field(entry, 0));
    const Entry *quick = ac->quick;
    unsigned k = 0;
    for (int refilled = 0;; refilled ^= 1) {
        entry = quick[bits.word >> (64 - LOOK)];
        if (!refilled) refill(&bits); /* the look need not wait for it */
        unsigned one = k + (unsigned)(entry >> 56), two = k + field(entry, 1);
        if (__builtin_expect(two >= 63, 0)) {
            if (field(entry, 7) == LONG) {
                refill(&bits);
                if (!(entry = long_entry(ac, bits.word))) return -1;
                one = two = k + field(entry, 1);
                refilled = 1; /* a code and a number may be left of it, so another look and refill */
            }
            if (field(entry, 7) == END) {
                drop(&bits, field(entry, 6));
                break;
            }
            if (one > 63) return -1;
            k = one;
            block[order[k]] = (int16_t)first_number(bits.word, entry);
            if (k == 63) {
                drop(&bits, field(entry, 6));
                break;
            }
            if (two - one == END) {
                drop(&bits, field(entry, 0));
                break;
            }
            if (two > 63) return -1;
            if (two > one) block[order[k = two]] = (int16_t)second_number(bits.word, entry);
            drop(&bits, field(entry, 0));
            if (k == 63) break;
            continue;
        }
        block[order[one]] = (int16_t)first_number(bits.word, entry);
        block[order[two]] = (int16_t)(block[order[two]] + second_number(bits.word, entry));
        drop(&bits, field(entry, 0));
        k = two;
    }
    *from = bits;
    return (int)k;
}

#endif
