// The two pieces of a net that take too long as torch computes them on a CPU: normalisation with what follows it, in as
// few passes over memory as there can be, and the transforms of Winograd's convolution. diffunet/nn/kernels.py builds
// this file by the machine's own compiler and calls it; the functions there say what is computed, and by which source.
//
// Every number is a sum in an order that depends on shapes alone, so that bits do not depend on the number of threads.
// Images are [n][pixels][c], channels last. A pointer that is null stands for something that is left out.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <memory>
#include <type_traits>
#include <vector>

namespace {

using i64 = int64_t;

constexpr int WIDE = 32;  // channels that are worked on together: a few vectors, whatever the vectors' width
constexpr i64 SHORT = 64;  // pixels that are added up in float32 before their sum goes to float64

using bf16 = uint16_t;  // its bits

inline float load(float value) { return value; }
inline float load(bf16 value) {
    uint32_t bits = uint32_t(value) << 16;
    float out;
    memcpy(&out, &bits, 4);
    return out;
}
inline void store(float& to, float value) { to = value; }
inline void store(bf16& to, float value) {  // to the nearest, ties to even; NaN stays NaN
    uint32_t bits;
    memcpy(&bits, &value, 4);
    uint32_t rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    to = uint16_t(value != value ? 0x7fc0 : rounded);
}

// exp for |x| up to 88 with a relative error of 2e-7: 2^k times a polynomial (Cephes). Compilers make vectors of it.
inline float exponential(float x) {
    x = std::min(std::max(x, -87.0f), 88.0f);
    float k = std::nearbyint(x * 1.44269504f);
    float r = x - k * 0.693359375f + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    int32_t bits = (int32_t(k) + 127) << 23;
    float power;
    memcpy(&power, &bits, 4);
    return p * power;
}

// A fast hash of a position (Wellons' "lowbias32", keyed): its bits decide which features are dropped.
inline uint32_t hash(uint32_t place, uint32_t key, uint32_t other) {
    uint32_t x = (place + key) ^ other;
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    return x ^ (x >> 16);
}

// What is known of a normalisation: y = dropout(silu(f * (1 + scale) + shift)), where f is x less its mean, divided by
// its deviation, times weight, plus bias.
struct Norm {
    i64 n, pixels, c, groups;
    const float *weight, *bias, *scale, *shift;  // [c], [c], [n c], [n c]
    float* stats;  // [n groups 2]: mean and 1 / deviation
    float eps;
    int silu;
    uint32_t drop;  // a feature is dropped where its hash is below this
    float kept;  // what the others are multiplied by
    uint64_t seed;
    int threads;  // that share the images; or each image, where there are fewer images

    float gain(i64 image, i64 ch) const { return weight[ch] * (scale ? 1 + scale[image * c + ch] : 1); }

    // y before SiLU is a x + b.
    void line(i64 image, float* a, float* b) const {
        for (i64 ch = 0; ch < c; ch++) {
            const float* known = stats + 2 * (image * groups + ch / (c / groups));
            a[ch] = known[1] * gain(image, ch);
            b[ch] = (scale ? 1 + scale[image * c + ch] : 1) * bias[ch] - known[0] * a[ch];
            if (shift) b[ch] += shift[image * c + ch];
        }
    }
    uint32_t key(i64 image) const { return uint32_t(seed) + uint32_t(image) * 0x85ebca77u; }
    uint32_t other() const { return uint32_t(seed >> 32); }
    bool few() const { return n < threads; }

    // Do work(first channel, channels) for all channels of an image, up to WIDE at a time.
    template <class Work>
    void channels(Work work) const {
#pragma omp parallel for num_threads(threads) if (few())
        for (i64 c0 = 0; c0 < c; c0 += WIDE) work(c0, std::min<i64>(WIDE, c - c0));
    }
};

// Ask memory for the WIDE numbers that lie `distance` further on; a CPU does not foresee such leaps by itself.
template <class T>
inline void ahead(const T* from, i64 distance) {
    for (int i = 0; i < WIDE; i += int(64 / sizeof(T))) __builtin_prefetch(from + distance + i);
}

// Do body(i) for i below `width`, as vectors where that is the usual width.
template <class Body>
inline void each(i64 width, Body body) {
    if (width == WIDE) {
#pragma omp simd
        for (int i = 0; i < WIDE; i++) body(i);
    } else {
        for (int i = 0; i < width; i++) body(i);
    }
}

template <bool SILU, bool DROP>
inline float forward(float h, uint32_t place, uint32_t key, const Norm& k) {
    if (SILU) h = h / (1 + exponential(-h));
    if (DROP) h *= hash(place, key, k.other()) < k.drop ? 0 : k.kept;
    return h;
}

// The derivative of `forward`, times the gradient g.
template <bool SILU, bool DROP>
inline float backward(float g, float h, uint32_t place, uint32_t key, const Norm& k) {
    if (DROP) g *= hash(place, key, k.other()) < k.drop ? 0 : k.kept;
    if (SILU) {
        float s = 1 / (1 + exponential(-h));
        g *= s * (1 + h * (1 - s));
    }
    return g;
}

// Do work(image, buffer) for all images, with `size` floats for the use of each.
template <class Work>
void each_image(const Norm& k, i64 size, Work work) {
#pragma omp parallel num_threads(k.threads) if (!k.few())
    {
        std::unique_ptr<float[]> buffer(new float[size]);
#pragma omp for
        for (i64 image = 0; image < k.n; image++) work(image, buffer.get());
    }
}

template <class T>
void moments(const Norm& k, const T* x, i64 image) {
    i64 members = k.c / k.groups;
    std::vector<double> sum(k.c), square(k.c);  // of differences from one number, so that a large mean takes no digits
    x += image * k.pixels * k.c;
    k.channels([&](i64 c0, i64 width) {
        float origin[WIDE];
        for (i64 c = 0; c < width; c++) origin[c] = load(x[(c0 + c) / members * members]);
        for (i64 first = 0; first < k.pixels; first += SHORT) {
            float one[WIDE] = {}, two[WIDE] = {};
            for (i64 p = first; p < std::min(first + SHORT, k.pixels); p++) {
                const T* row = x + p * k.c + c0;
                ahead(row, 8 * k.c);
                each(width, [&](int c) {
                    float v = load(row[c]) - origin[c];
                    one[c] += v;
                    two[c] += v * v;
                });
            }
            for (i64 c = 0; c < width; c++) { sum[c0 + c] += one[c]; square[c0 + c] += two[c]; }
        }
    });
    for (i64 g = 0; g < k.groups; g++) {
        double first = 0, second = 0, count = double(members * k.pixels);
        for (i64 c = g * members; c < (g + 1) * members; c++) { first += sum[c]; second += square[c]; }
        double mean = first / count, variance = second / count - mean * mean;
        float* out = k.stats + 2 * (image * k.groups + g);
        out[0] = float(load(x[g * members]) + mean);
        out[1] = float(1 / std::sqrt((variance < 0 ? 0 : variance) + k.eps));
    }
}

template <class T, bool SILU, bool DROP>
void norm_forward(const Norm& k, const T* x, T* y) {
    each_image(k, 2 * k.c, [&](i64 image, float* a) {
        float* b = a + k.c;
        uint32_t key = k.key(image);
        moments(k, x, image);
        k.line(image, a, b);
#pragma omp parallel for num_threads(k.threads) if (k.few())
        for (i64 p = 0; p < k.pixels; p++) {
            i64 at = (image * k.pixels + p) * k.c;
            uint32_t place = uint32_t(p * k.c);
#pragma omp simd
            for (i64 c = 0; c < k.c; c++)
                store(y[at + c], forward<SILU, DROP>(a[c] * load(x[at + c]) + b[c], place + uint32_t(c), key, k));
        }
    });
}

// dx [n pixels c]; sums [n 2 c]: for each channel those over the pixels of g, the gradient before SiLU, and of
// g (x - mean) / deviation.
template <class T, bool SILU, bool DROP>
void norm_backward(const Norm& k, const T* x, const T* gy, T* dx, float* sums) {
    i64 members = k.c / k.groups;
    constexpr bool inside = std::is_same_v<T, float>;  // g fits into dx until it is needed again
    each_image(k, 4 * k.c + (inside ? 0 : k.pixels * k.c), [&](i64 image, float* a) {
        float *b = a + k.c, *curve = b + k.c, *level = curve + k.c, *gs = level + k.c;
        if constexpr (inside) gs = dx + image * k.pixels * k.c;
        float *plain = sums + 2 * image * k.c, *scaled = plain + k.c;
        uint32_t key = k.key(image);
        k.line(image, a, b);
        const float* known = k.stats + 2 * image * k.groups;
        k.channels([&](i64 c0, i64 width) {
            double sum[WIDE] = {}, times[WIDE] = {};
            float mean[WIDE] = {};
            for (i64 c = 0; c < width; c++) mean[c] = known[2 * ((c0 + c) / members)];
            for (i64 first = 0; first < k.pixels; first += SHORT) {
                float one[WIDE] = {}, two[WIDE] = {};
                for (i64 p = first; p < std::min(first + SHORT, k.pixels); p++) {
                    i64 at = (image * k.pixels + p) * k.c + c0;
                    uint32_t place = uint32_t(p * k.c + c0);
                    float* keep = gs + p * k.c + c0;
                    ahead(x + at, 8 * k.c);
                    ahead(gy + at, 8 * k.c);
                    ahead(keep, 8 * k.c);
                    each(width, [&](int c) {
                        float v = load(x[at + c]), h = a[c0 + c] * v + b[c0 + c];
                        float g = backward<SILU, DROP>(load(gy[at + c]), h, place + uint32_t(c), key, k);
                        keep[c] = g;
                        one[c] += g;
                        two[c] += g * (v - mean[c]);
                    });
                }
                for (i64 c = 0; c < width; c++) { sum[c] += one[c]; times[c] += two[c]; }
            }
            for (i64 c = 0; c < width; c++) {
                plain[c0 + c] = float(sum[c]);
                scaled[c0 + c] = float(times[c] * known[2 * ((c0 + c) / members) + 1]);
            }
        });
        // dx = r (d - mean of d - f mean of d f) over each group, with d = gain g, f = (x - m) r: a g + curve x + level
        for (i64 group = 0; group < k.groups; group++) {
            double first = 0, second = 0, count = double(members * k.pixels);
            for (i64 c = group * members; c < (group + 1) * members; c++) {
                first += double(k.gain(image, c)) * plain[c];
                second += double(k.gain(image, c)) * scaled[c];
            }
            double m = known[2 * group], r = known[2 * group + 1];
            for (i64 c = group * members; c < (group + 1) * members; c++) {
                curve[c] = float(-r * r * second / count);
                level[c] = float(r * (r * m * second - first) / count);
            }
        }
#pragma omp parallel for num_threads(k.threads) if (k.few())
        for (i64 p = 0; p < k.pixels; p++) {
            i64 at = (image * k.pixels + p) * k.c;
#pragma omp simd
            for (i64 c = 0; c < k.c; c++)
                store(dx[at + c], a[c] * gs[p * k.c + c] + curve[c] * load(x[at + c]) + level[c]);
        }
    });
}

// Winograd's transforms for 4x4 outputs of a 3x3 convolution, along one axis of a tile of `WIDE` channels.

using Row = float[WIDE];

// B^T x, 6 from 6 numbers that are `s` apart, to places that are `s` apart
inline void input_axis(const Row* x, Row* y, int s) {
#pragma omp simd
    for (int c = 0; c < WIDE; c++) {
        float a = x[0][c], b = x[s][c], d = x[2 * s][c], e = x[3 * s][c], f = x[4 * s][c], g = x[5 * s][c];
        y[0][c] = 4 * a - 5 * d + f;
        y[s][c] = e + f - 4 * (b + d);
        y[2 * s][c] = f - e + 4 * (b - d);
        y[3 * s][c] = f - d + 2 * (e - b);
        y[4 * s][c] = f - d - 2 * (e - b);
        y[5 * s][c] = 4 * b - 5 * e + g;
    }
}

// A^T x, 4 from 6 numbers
inline void output_axis(const Row* x, Row* y, int s, int to) {
#pragma omp simd
    for (int c = 0; c < WIDE; c++) {
        float sum = x[s][c] + x[2 * s][c], odd = x[s][c] - x[2 * s][c];
        float outer = x[3 * s][c] + x[4 * s][c], far = x[3 * s][c] - x[4 * s][c];
        y[0][c] = x[0][c] + sum + outer;
        y[to][c] = odd + 2 * far;
        y[2 * to][c] = sum + 4 * outer;
        y[3 * to][c] = odd + 8 * far + x[5 * s][c];
    }
}

// A x, 6 from 4 numbers
inline void output_axis_adjoint(const Row* x, Row* y, int s, int to) {
#pragma omp simd
    for (int c = 0; c < WIDE; c++) {
        float a = x[0][c], b = x[s][c], d = x[2 * s][c], e = x[3 * s][c];
        y[0][c] = a;
        y[to][c] = (a + d) + (b + e);
        y[2 * to][c] = (a + d) - (b + e);
        y[3 * to][c] = (a + 4 * d) + (2 * b + 8 * e);
        y[4 * to][c] = (a + 4 * d) - (2 * b + 8 * e);
        y[5 * to][c] = e;
    }
}

// G x, 6 from 3 numbers
inline void weight_axis(const Row* x, Row* y, int s, int to) {
#pragma omp simd
    for (int c = 0; c < WIDE; c++) {
        float a = x[0][c], b = x[s][c], d = x[2 * s][c];
        y[0][c] = a / 4;
        y[to][c] = (a + d + b) / -6;
        y[2 * to][c] = (a + d - b) / -6;
        y[3 * to][c] = a / 24 + b / 12 + d / 6;
        y[4 * to][c] = a / 24 - b / 12 + d / 6;
        y[5 * to][c] = d;
    }
}

// G^T x, 3 from 6 numbers
inline void weight_axis_adjoint(const Row* x, Row* y, int s, int to) {
#pragma omp simd
    for (int c = 0; c < WIDE; c++) {
        float a = x[0][c], b = x[s][c], d = x[2 * s][c], e = x[3 * s][c], f = x[4 * s][c];
        y[0][c] = a / 4 - (b + d) / 6 + (e + f) / 24;
        y[to][c] = (d - b) / 6 + (e - f) / 12;
        y[2 * to][c] = (e + f - b - d) / 6 + x[5 * s][c];
    }
}

// Copy `width` numbers of the SIZE that a row has, zeros after them.
template <int SIZE>
inline void fill(float* to, const float* from, i64 width) {
    if (width == SIZE) {
        memcpy(to, from, SIZE * 4);  // of a size that the compiler knows: a few vectors
    } else {
        memset(to, 0, SIZE * 4);
        memcpy(to, from, width * 4);
    }
}

// Copy a row to where there is room for `width` numbers.
inline void give(float* to, const float* from, i64 width) { memcpy(to, from, width == WIDE ? sizeof(Row) : width * 4); }

// Copy side x side pixels of an image [h w c] from (top, left) on, `width` channels, zeros outside.
inline void read_tile(const float* image, Row* to, int side, i64 top, i64 left, i64 h, i64 w, i64 c, i64 width) {
    for (i64 i = 0; i < side; i++)
        for (i64 j = 0; j < side; j++) {
            i64 row = top + i, column = left + j;
            if (row < 0 || row >= h || column < 0 || column >= w) memset(to[side * i + j], 0, sizeof(Row));
            else fill<WIDE>(to[side * i + j], image + (row * w + column) * c, width);
        }
}

// Images [n h w c] in tiles of 4x4 pixels, counted through all images. A transformed tile is 36 numbers a channel,
// which are `apart` floats from one another.
struct Tiles {
    i64 n, h, w, c;
    i64 down() const { return (h + 3) / 4; }
    i64 across() const { return (w + 3) / 4; }
    i64 all() const { return n * down() * across(); }

    // Do work(image, row, column of the first pixel, first channel, channels) for the whole of a tile.
    template <class Work>
    void parts(i64 tile, Work work) const {
        i64 image = tile / (down() * across()), i = tile / across() % down(), j = tile % across();
        for (i64 c0 = 0; c0 < c; c0 += WIDE) work(image, 4 * i, 4 * j, c0, std::min<i64>(WIDE, c - c0));
    }

    // B^T d B of a tile and the pixels around it
    void input(const float* x, i64 tile, float* to, i64 apart) const {
        parts(tile, [&](i64 image, i64 top, i64 left, i64 c0, i64 width) {
            Row a[36], b[36];
            read_tile(x + image * h * w * c + c0, a, 6, top - 1, left - 1, h, w, c, width);
            for (int z = 0; z < 6; z++) input_axis(a + z, b + z, 6);
            for (int y = 0; y < 6; y++) input_axis(b + 6 * y, a + 6 * y, 1);
            for (int k = 0; k < 36; k++) give(to + k * apart + c0, a[k], width);
        });
    }

    // A g A^T of the gradient of a tile
    void gradient(const float* g, i64 tile, float* to, i64 apart) const {
        parts(tile, [&](i64 image, i64 top, i64 left, i64 c0, i64 width) {
            Row a[36], b[24];
            read_tile(g + image * h * w * c + c0, a, 4, top, left, h, w, c, width);
            for (int z = 0; z < 4; z++) output_axis_adjoint(a + z, b + z, 4, 4);
            for (int y = 0; y < 6; y++) output_axis_adjoint(b + 4 * y, a + 6 * y, 1, 1);
            for (int k = 0; k < 36; k++) give(to + k * apart + c0, a[k], width);
        });
    }

    // A^T m A, with bias [c], as a tile of the output
    void output(const float* m, i64 apart, const float* bias, i64 tile, float* out) const {
        parts(tile, [&](i64 image, i64 top, i64 left, i64 c0, i64 width) {
            Row a[36], b[24];
            for (int k = 0; k < 36; k++) fill<WIDE>(a[k], m + k * apart + c0, width);
            for (int z = 0; z < 6; z++) output_axis(a + z, b + z, 6, 6);
            for (int q = 0; q < 4; q++) output_axis(b + 6 * q, a + 4 * q, 1, 1);
            for (i64 q = 0; q < std::min<i64>(4, h - top); q++)
                for (i64 z = 0; z < std::min<i64>(4, w - left); z++) {
                    float* to = out + ((image * h + top + q) * w + left + z) * c + c0;
                    for (i64 k = 0; k < width; k++) to[k] = a[4 * q + z][k] + (bias ? bias[c0 + k] : 0);
                }
        });
    }
};

// Products of matrices whose second factor is stored in panels of PANEL columns.

#ifdef __AVX512F__
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
constexpr int PANEL = 2 * LANES, ROWS = 6;  // 12 vectors of sums, which are in registers throughout
constexpr i64 BLOCK = 4 * ROWS;  // tiles that a thread takes through all of it at a time, in its own cache

typedef float Vector __attribute__((vector_size(LANES * 4)));
typedef float Unaligned __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

// m [ROWS PANEL] = v [ROWS k] u [k PANEL]; rows of m are n apart
inline void product(const float* v, const float* u, float* m, i64 k, i64 n) {
    Vector sum[ROWS][2] = {};
    for (i64 i = 0; i < k; i++) {
        Vector first = *(const Unaligned*)(u + i * PANEL), second = *(const Unaligned*)(u + i * PANEL + LANES);
#pragma GCC unroll 6
        for (int r = 0; r < ROWS; r++) {
            sum[r][0] += v[r * k + i] * first;
            sum[r][1] += v[r * k + i] * second;
        }
    }
#pragma GCC unroll 6
    for (int r = 0; r < ROWS; r++) {
        *(Unaligned*)(m + r * n) = sum[r][0];
        *(Unaligned*)(m + r * n + LANES) = sum[r][1];
    }
}

}  // namespace

extern "C" {

#define NORM n, pixels, c, groups, weight, bias, scale, shift, stats, eps, silu, drop, kept, seed, threads
#define NORM_ARGUMENTS \
    i64 n, i64 pixels, i64 c, i64 groups, const float *weight, const float *bias, const float *scale, \
    const float *shift, float *stats, float eps, int silu, uint32_t drop, float kept, uint64_t seed, int threads
#define CHOOSE(call, T, ...) \
    Norm k{NORM}; \
    if (silu) { if (drop) call<T, true, true>(k, __VA_ARGS__); else call<T, true, false>(k, __VA_ARGS__); } \
    else { if (drop) call<T, false, true>(k, __VA_ARGS__); else call<T, false, false>(k, __VA_ARGS__); }

void norm_forward_float32(const float* x, float* y, NORM_ARGUMENTS) { CHOOSE(norm_forward, float, x, y) }
void norm_forward_bfloat16(const bf16* x, bf16* y, NORM_ARGUMENTS) { CHOOSE(norm_forward, bf16, x, y) }
void norm_backward_float32(const float* x, const float* gy, float* dx, float* sums, NORM_ARGUMENTS) {
    CHOOSE(norm_backward, float, x, gy, dx, sums)
}
void norm_backward_bfloat16(const bf16* x, const bf16* gy, bf16* dx, float* sums, NORM_ARGUMENTS) {
    CHOOSE(norm_backward, bf16, x, gy, dx, sums)
}

int panel() { return PANEL; }

// x [n h w c] -> v [36 tiles c]
void input_transform(const float* x, float* v, i64 n, i64 h, i64 w, i64 c, int threads) {
    Tiles tiles{n, h, w, c};
#pragma omp parallel for num_threads(threads)
    for (i64 tile = 0; tile < tiles.all(); tile++) tiles.input(x, tile, v + tile * c, tiles.all() * c);
}

// g [n h w c] -> m [36 tiles c]
void gradient_transform(const float* g, float* m, i64 n, i64 h, i64 w, i64 c, int threads) {
    Tiles tiles{n, h, w, c};
#pragma omp parallel for num_threads(threads)
    for (i64 tile = 0; tile < tiles.all(); tile++) tiles.gradient(g, tile, m + tile * c, tiles.all() * c);
}

// G w G^T of weights, whose number for tap t, input i and output o is weights[t tap + i input + o], or for tap 8 - t if
// `turned`: u [36 panels in PANEL]
void weight_transform(const float* weights, float* u, i64 in, i64 out, i64 tap, i64 input, int turned, int threads) {
    i64 panels = (out + PANEL - 1) / PANEL;
#pragma omp parallel for num_threads(threads)
    for (i64 i = 0; i < in; i++)
        for (i64 p = 0; p < panels; p++) {
            i64 width = std::min<i64>(PANEL, out - p * PANEL);
            Row a[9] = {}, b[18], to[36];
            const float* from = weights + i * input + p * PANEL;
            for (int k = 0; k < 9; k++) fill<PANEL>(a[k], from + (turned ? 8 - k : k) * tap, width);
            for (int z = 0; z < 3; z++) weight_axis(a + z, b + z, 3, 3);
            for (int y = 0; y < 6; y++) weight_axis(b + 3 * y, to + 6 * y, 1, 1);
            for (i64 k = 0; k < 36; k++) memcpy(u + ((k * panels + p) * in + i) * PANEL, to[k], PANEL * 4);
        }
}

// du [36 out in] -> the gradient of weights [out 3 3 in]
void weight_gradient(const float* du, float* dweights, i64 out, i64 in, int threads) {
#pragma omp parallel for num_threads(threads)
    for (i64 o = 0; o < out; o++)
        for (i64 c0 = 0; c0 < in; c0 += WIDE) {
            i64 width = std::min<i64>(WIDE, in - c0);
            Row a[36], b[18], to[9];
            for (i64 k = 0; k < 36; k++) fill<WIDE>(a[k], du + (k * out + o) * in + c0, width);
            for (int z = 0; z < 6; z++) weight_axis_adjoint(a + z, b + z, 6, 6);
            for (int y = 0; y < 3; y++) weight_axis_adjoint(b + 6 * y, to + 3 * y, 1, 1);
            for (int k = 0; k < 9; k++) give(dweights + (o * 9 + k) * in + c0, to[k], width);
        }
}

// y [n h w out] = the convolution of x [n h w in] by transformed weights u, plus bias [out]
void convolution(
    const float* x, const float* u, const float* bias, float* y, i64 n, i64 h, i64 w, i64 in, i64 out, int threads
) {
    Tiles from{n, h, w, in}, to{n, h, w, out};
    i64 panels = (out + PANEL - 1) / PANEL, wide = panels * PANEL;
    i64 share = (from.all() + threads - 1) / threads, block = std::min(BLOCK, (share + ROWS - 1) / ROWS * ROWS);
#pragma omp parallel num_threads(threads)
    {
        std::vector<float> v(36 * block * in), m(36 * block * wide);
#pragma omp for
        for (i64 first = 0; first < from.all(); first += block) {
            i64 count = std::min(block, from.all() - first);
            for (i64 t = 0; t < count; t++) from.input(x, first + t, &v[t * in], block * in);
            for (i64 k = 0; k < 36; k++)
                for (i64 p = 0; p < panels; p++)
                    for (i64 t = 0; t < count; t += ROWS)
                        product(&v[(k * block + t) * in], u + (k * panels + p) * in * PANEL,
                                &m[(k * block + t) * wide + p * PANEL], in, wide);
            for (i64 t = 0; t < count; t++) to.output(&m[t * wide], block * wide, bias, first + t, y);
        }
    }
}
}
