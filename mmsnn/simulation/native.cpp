// A layer of neurons that send changes as bytes, with the convolutions of bytes whose sums they receive: see native.py.
// All maps lie channels last, (N, H, W, C), one for each step. What channels have is padded to multiples of 64.
#include <immintrin.h>
#include <algorithm>
#include <cstdint>
#include <vector>

constexpr int64_t POSITIONS = 32, CHANNELS = 64;  // of a block: it takes all its steps at once
enum Kind : int64_t { DENSE, DEPTHWISE, CODES, VALUES };

struct Term {  // of the current, in halves of the threshold: scale * sum
    const void *const *maps;  // of each step: bytes, of VALUES floats
    const void *weight;       // as native.py arranges them
    const int32_t *start;     // (C_out,): what a sum begins with
    const float *scale;       // (C_out,)
    int64_t kind, height, width, channels, depth, zero_point;  // depth: products of a sum
    int64_t kernel[2], stride[2], padding[2], dilation[2];
};

struct Layer {
    const Term *terms;
    const float *bias;        // (C,), in halves
    const float *largest;     // (C,): targets, in halves
    const uint8_t *changes;   // (K, 128): what is sent for so many halves of difference and a quarter
    const uint8_t *sent;      // before the first step, or null
    uint8_t *const *codes;    // of each step
    int64_t *counts;          // of events and spikes, or null
    int64_t number, steps, images, height, width, channels, zero_point, lowest, threads;
};

// Sums for 32 positions, whose bytes lie `row` apart, and 32 channels.
static void multiply(const uint8_t *a, int64_t row, const int8_t *b, int64_t depth, const int32_t *start, int32_t *sums) {
    const int8_t *other = b + 16 * depth;
#ifdef __AMX_INT8__
    _tile_loadd(0, start, 0);
    _tile_loadd(1, start + 16, 0);
    _tile_loadd(2, start, 0);
    _tile_loadd(3, start + 16, 0);
    for (int64_t k = 0; k < depth; k += 64) {
        _tile_loadd(4, a + k, row);
        _tile_loadd(6, b + 16 * k, 64);
        _tile_dpbusd(0, 4, 6);
        _tile_loadd(7, other + 16 * k, 64);
        _tile_dpbusd(1, 4, 7);
        _tile_loadd(5, a + 16 * row + k, row);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
    }
    _tile_stored(0, sums, 4 * CHANNELS);
    _tile_stored(1, sums + 16, 4 * CHANNELS);
    _tile_stored(2, sums + 16 * CHANNELS, 4 * CHANNELS);
    _tile_stored(3, sums + 16 * CHANNELS + 16, 4 * CHANNELS);
#else
    for (int64_t position = 0; position < POSITIONS; position += 8, a += 8 * row, sums += 8 * CHANNELS) {
        __m512i left[8], right[8];
        std::fill_n(left, 8, _mm512_loadu_si512(start));
        std::fill_n(right, 8, _mm512_loadu_si512(start + 16));
        for (int64_t k = 0; k < depth; k += 4) {
            const __m512i w = _mm512_loadu_si512(b + 16 * k), v = _mm512_loadu_si512(other + 16 * k);
#pragma GCC unroll 8
            for (int i = 0; i < 8; i++) {
                const __m512i x = _mm512_set1_epi32(*(const int32_t *)(a + i * row + k));
                left[i] = _mm512_dpbusd_epi32(left[i], x, w);
                right[i] = _mm512_dpbusd_epi32(right[i], x, v);
            }
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            _mm512_storeu_si512(sums + i * CHANNELS, left[i]);
            _mm512_storeu_si512(sums + i * CHANNELS + 16, right[i]);
        }
    }
#endif
}

// 16 of 64 bytes as integers.
static __m512i integers(const uint8_t *from, __mmask64 mask, int part) {
    return _mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(mask >> 16 * part, from + 16 * part));
}

// What has been sent after a step, of targets, in whole thresholds and the half on top, and what had been sent before.
static __m512i advance(__m512i target, __m512i half, __m512i before, const uint8_t *changes) {
    const __m512i one = _mm512_set1_epi8(1), most = _mm512_set1_epi8(63);
    // The difference is an odd number of quarters, hence not 0; its size is counted in halves, one quarter left out.
    const __mmask64 below = _mm512_cmplt_epu8_mask(target, before);
    __m512i size = _mm512_or_si512(_mm512_subs_epu8(target, before), _mm512_subs_epu8(before, target));
    size = _mm512_min_epu8(_mm512_mask_sub_epi8(size, below, size, one), most);
    half = _mm512_xor_si512(half, _mm512_maskz_mov_epi8(below, one));
    const __m512i change = _mm512_permutex2var_epi8(
        _mm512_loadu_si512(changes), _mm512_or_si512(_mm512_add_epi8(size, size), half), _mm512_loadu_si512(changes + 64));
    return _mm512_mask_sub_epi8(_mm512_add_epi8(before, change), below, before, change);
}

struct Worker {
    const Layer &l;
    std::vector<std::vector<uint8_t>> rows, fill;   // of each term: what its kernel weights; codes of 0
    std::vector<std::vector<int64_t>> places;       // where the kernel's bytes lie; -1: beyond the map
    std::vector<int32_t> sums;
    int64_t events = 0, spikes = 0;

    explicit Worker(const Layer &layer) : l(layer), rows(l.number), fill(l.number), places(l.number),
            sums(l.number * POSITIONS * CHANNELS) {
        for (int64_t i = 0; i < l.number; i++) {
            const Term &t = l.terms[i];
            rows[i].resize(t.kind == DENSE ? l.steps * POSITIONS * t.depth : 0);
            fill[i].assign(t.channels + CHANNELS, t.zero_point);
            places[i].resize(POSITIONS * t.kernel[0] * t.kernel[1]);
        }
    }

    // Whether a convolution is a product of the map as it lies.
    bool is_product(const Term &t, int64_t count) const {
        return t.kind == DENSE && t.kernel[0] * t.kernel[1] == 1 && t.stride[0] * t.stride[1] == 1
            && t.padding[0] + t.padding[1] == 0 && t.channels == t.depth && count == POSITIONS;
    }

    void locate(int64_t number, int64_t first, int64_t count) {
        const Term &t = l.terms[number];
        int64_t *place = places[number].data();
        for (int64_t position = first; position < first + count; position++) {
            const int64_t y = (uint32_t)position / (uint32_t)l.width, image = (uint32_t)y / (uint32_t)l.height;
            const int64_t top = (y - image * l.height) * t.stride[0] - t.padding[0];
            const int64_t left = (position - y * l.width) * t.stride[1] - t.padding[1];
            for (int64_t v = top; v < top + t.kernel[0] * t.dilation[0]; v += t.dilation[0])
                for (int64_t u = left; u < left + t.kernel[1] * t.dilation[1]; u += t.dilation[1])
                    *place++ = v < 0 || v >= t.height || u < 0 || u >= t.width ? -1
                        : ((image * t.height + v) * t.width + u) * t.channels;
        }
    }

    const uint8_t *at(int64_t number, int64_t step, int64_t place) const {
        return place < 0 ? fill[number].data() : (const uint8_t *)l.terms[number].maps[step] + place;
    }

    void gather(int64_t number, int64_t count, int64_t step) {
        const Term &t = l.terms[number];
        const int64_t size = t.kernel[0] * t.kernel[1], *place = places[number].data();
        uint8_t *row = rows[number].data() + step * POSITIONS * t.depth;
        for (int64_t i = 0; i < count; i++, row += t.depth, place += size)
            for (int64_t j = 0; j < size; j++) {
                const uint8_t *from = at(number, step, place[j]);
                uint8_t *to = row + j * t.channels;
                for (int64_t left = t.channels; left > 0; left -= 64, to += 64, from += 64) {
                    const __mmask64 mask = left < 64 ? (1ull << left) - 1 : ~0ull;
                    _mm512_mask_storeu_epi8(to, mask, _mm512_maskz_loadu_epi8(mask, from));
                }
            }
    }

    void sum_depthwise(int64_t number, int64_t count, int64_t step, int64_t channel, __mmask64 mask) {
        const Term &t = l.terms[number];
        const int64_t size = t.kernel[0] * t.kernel[1], padded = (t.channels + CHANNELS - 1) / CHANNELS * CHANNELS;
        const int64_t *place = places[number].data();
        int32_t *found = &sums[number * POSITIONS * CHANNELS];
        for (int64_t i = 0; i < count; i++, place += size, found += CHANNELS) {
            const int32_t *weight = (const int32_t *)t.weight + channel;
            __m512i sum[4];
            for (int part = 0; part < 4; part++)
                sum[part] = _mm512_loadu_si512(t.start + channel + 16 * part);
            for (int64_t j = 0; j < size; j++, weight += padded) {
                const uint8_t *from = at(number, step, place[j]) + channel;
#pragma GCC unroll 4
                for (int part = 0; part < 4; part++)
                    sum[part] = _mm512_dpwssd_epi32(sum[part], integers(from, mask, part),
                                                    _mm512_loadu_si512(weight + 16 * part));
            }
            for (int part = 0; part < 4; part++)
                _mm512_storeu_si512(found + 16 * part, sum[part]);
        }
    }

    void run(int64_t first) {
        const int64_t count = std::min(POSITIONS, l.images * l.height * l.width - first);
        for (int64_t i = 0; i < l.number; i++)
            if (l.terms[i].kind == DEPTHWISE || l.terms[i].kind == DENSE && !is_product(l.terms[i], count)) {
                locate(i, first, count);
                for (int64_t step = 0; step < l.steps && l.terms[i].kind == DENSE; step++)
                    gather(i, count, step);
            }
        for (int64_t channel = 0; channel < l.channels; channel += CHANNELS) {
            const int64_t left = std::min(CHANNELS, l.channels - channel), start = first * l.channels + channel;
            const __mmask64 mask = left < CHANNELS ? (1ull << left) - 1 : ~0ull;
            __m512i sent[POSITIONS];
            std::fill_n(sent, POSITIONS, _mm512_set1_epi8(l.zero_point));
            for (int64_t i = 0; l.sent && i < count; i++)
                sent[i] = _mm512_maskz_loadu_epi8(mask, l.sent + start + i * l.channels);
            for (int64_t step = 0; step < l.steps; step++) {
                for (int64_t i = 0; i < l.number; i++) {
                    const Term &t = l.terms[i];
                    int32_t *found = &sums[i * POSITIONS * CHANNELS];
                    const uint8_t *a = is_product(t, count) ? (const uint8_t *)t.maps[step] + first * t.depth
                        : rows[i].data() + step * POSITIONS * t.depth;
                    for (int64_t c = channel; t.kind == DENSE && c < channel + left; c += 32)
                        multiply(a, t.depth, (const int8_t *)t.weight + c * t.depth, t.depth, t.start + c,
                                 found + c - channel);
                    if (t.kind == DEPTHWISE)
                        sum_depthwise(i, count, step, channel, mask);
                }
                fire(step, first, count, channel, start, mask, sent);
            }
        }
    }

    void fire(int64_t step, int64_t first, int64_t count, int64_t channel, int64_t start, __mmask64 mask, __m512i *sent) {
        const int64_t number = l.number, row = l.channels;
        const Term *terms = l.terms;
        const int32_t *found = sums.data();
        uint8_t *codes = l.codes[step];
        const bool counted = l.counts;
        const __m512i zero = _mm512_set1_epi8(l.zero_point), lowest = _mm512_set1_epi16(l.lowest);
        const __m512i one = _mm512_set1_epi16(1);
        const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        // What comes next is fetched on the way: caches do not foresee it.
        const int64_t next = channel + CHANNELS < row ? CHANNELS : POSITIONS * row - channel;
        for (int64_t i = 0, place = start; i < count; i++, place += row) {
            __builtin_prefetch(codes + place + next, 1);
            __m512 current[4];
            for (int part = 0; part < 4; part++)
                current[part] = _mm512_loadu_ps(l.bias + channel + 16 * part);
            for (int64_t j = 0; j < number; j++) {
                const Term &t = terms[j];
                const uint8_t *map = (const uint8_t *)t.maps[step];
                if (t.kind == CODES)
                    __builtin_prefetch(map + place + next);
                for (int64_t k = 0; t.kind == VALUES && k < CHANNELS; k += 16)
                    __builtin_prefetch(map + 4 * (place + next + k));
                for (int64_t k = 0; channel == 0 && is_product(t, count) && k < t.depth; k += 64)
                    __builtin_prefetch(map + (first + POSITIONS + i) * t.depth + k, 0, 2);
#pragma GCC unroll 4
                for (int part = 0; part < 4; part++) {
                    const __m512 value = t.kind == VALUES
                        ? _mm512_maskz_loadu_ps(mask >> 16 * part, (const float *)map + place + 16 * part)
                        : _mm512_cvtepi32_ps(t.kind == CODES ? integers(map + place, mask, part) : _mm512_loadu_si512(
                            found + (j * POSITIONS + i) * CHANNELS + 16 * part));
                    current[part] = _mm512_fmadd_ps(value, _mm512_loadu_ps(t.scale + channel + 16 * part), current[part]);
                }
            }
            __m512i halves[4];
            for (int part = 0; part < 4; part++)
                halves[part] = _mm512_cvtps_epi32(
                    _mm512_min_ps(current[part], _mm512_loadu_ps(l.largest + channel + 16 * part)));
            const __m512i left = _mm512_max_epi16(_mm512_packs_epi32(halves[0], halves[1]), lowest);
            const __m512i right = _mm512_max_epi16(_mm512_packs_epi32(halves[2], halves[3]), lowest);
            const __m512i target = _mm512_packs_epi16(_mm512_srai_epi16(left, 1), _mm512_srai_epi16(right, 1));
            const __m512i half = _mm512_packs_epi16(_mm512_and_si512(left, one), _mm512_and_si512(right, one));
            const __m512i before = sent[i];
            sent[i] = advance(_mm512_add_epi8(_mm512_permutexvar_epi32(order, target), zero),
                              _mm512_permutexvar_epi32(order, half), before, l.changes + 128 * step);
            _mm512_mask_storeu_epi8(codes + place, mask, sent[i]);
            if (counted) {
                spikes += _mm512_reduce_add_epi64(_mm512_sad_epu8(_mm512_maskz_mov_epi8(mask, before),
                                                                  _mm512_maskz_mov_epi8(mask, sent[i])));
                events += __builtin_popcountll(_mm512_mask_cmpneq_epu8_mask(mask, before, sent[i]));
            }
        }
    }
};

extern "C" void fire(const Layer *layer) {
    const Layer &l = *layer;
    const int64_t all = l.images * l.height * l.width;
    int64_t events = 0, spikes = 0;
#pragma omp parallel num_threads(l.threads) reduction(+ : events, spikes)
    {
#ifdef __AMX_INT8__
        struct { uint8_t palette = 1, start = 0, none[14] = {}; uint16_t bytes[16] = {}; uint8_t rows[16] = {}; } tiles;
        std::fill_n(tiles.bytes, 8, 64);
        std::fill_n(tiles.rows, 8, 16);
        _tile_loadconfig(&tiles);
#endif
        Worker worker(l);
#pragma omp for schedule(dynamic, 4)
        for (int64_t first = 0; first < all; first += POSITIONS)
            worker.run(first);
        events += worker.events;
        spikes += worker.spikes;
#ifdef __AMX_INT8__
        _tile_release();
#endif
    }
    if (l.counts) {
        l.counts[0] += events;
        l.counts[1] += spikes;
    }
}

// The values that codes stand for, (N, C, H W), as the ANN lays them out.
extern "C" void decode(const uint8_t *codes, const float *threshold, float *values, int64_t images, int64_t positions,
                       int64_t channels, int64_t zero_point, int64_t threads) {
#pragma omp parallel for collapse(2) num_threads(threads)
    for (int64_t image = 0; image < images; image++)
        for (int64_t first = 0; first < positions; first += 16) {
            const uint8_t *from = codes + (image * positions + first) * channels;
            float *to = values + image * channels * positions + first;
            const int64_t count = std::min<int64_t>(16, positions - first);
            const __m512i rows = _mm512_mullo_epi32(_mm512_set1_epi32(channels), _mm512_setr_epi32(
                0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
            for (int64_t channel = 0; channel < channels; channel++, to += positions)
                if (count == 16 && channels % 4 == 0) {  // four channels of 16 positions at once
                    const __m512i four = _mm512_i32gather_epi32(rows, from + channel / 4 * 4, 1);
                    const __m512i code = _mm512_and_si512(_mm512_srli_epi32(four, channel % 4 * 8), _mm512_set1_epi32(255));
                    const __m512 value = _mm512_cvtepi32_ps(_mm512_sub_epi32(code, _mm512_set1_epi32(zero_point)));
                    _mm512_storeu_ps(to, _mm512_mul_ps(value, _mm512_set1_ps(threshold[channel])));
                } else
                    for (int64_t i = 0; i < count; i++)
                        to[i] = (float)(from[i * channels + channel] - zero_point) * threshold[channel];
        }
}
