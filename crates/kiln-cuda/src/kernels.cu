// What the denoising loop computes between two runs of the UNet. Tensors are f32 and contiguous.

typedef unsigned long long u64;

#define MOST_TERMS 32

struct Terms {
    const float *values[MOST_TERMS];
    double factors[MOST_TERMS];
    u64 count;
};

static __device__ u64 index() { return (u64)blockIdx.x * blockDim.x + threadIdx.x; }
static __device__ u64 stride() { return (u64)gridDim.x * blockDim.x; }

// out = sum of factor * values, onto what is there if `add`.
extern "C" __global__ void combine(float *out, Terms terms, u64 add, u64 n) {
    for (u64 i = index(); i < n; i += stride()) {
        double sum = add ? (double)out[i] : 0.0;
        for (u64 k = 0; k < terms.count; k++)
            sum += terms.factors[k] * (double)terms.values[k][i];
        out[i] = (float)sum;
    }
}

// Classifier-free guidance: `prediction` has the unconditional half first, each half `n` long.
extern "C" __global__ void guide(float *out, const float *prediction, float scale, u64 n) {
    for (u64 i = index(); i < n; i += stride()) {
        float unconditional = prediction[i];
        out[i] = unconditional + scale * (prediction[n + i] - unconditional);
    }
}

// One flag for all: whether some value is infinite or not a number.
extern "C" __global__ void find_not_finite(const float *values, unsigned *found, u64 n) {
    for (u64 i = index(); i < n; i += stride())
        if (!(values[i] - values[i] == 0.0f))
            *found = 1;
}

static __device__ double spread(double sum, double squares, u64 n) {
    return sqrt((squares - sum * sum / (double)n) / (double)(n - 1));
}

// Sums and sums of squares of `a` and `b`, each of `rows` rows of `n`, by `parts` threads a row: `sums` is [rows, parts, 4].
extern "C" __global__ void sum_squares(const float *a, const float *b, double *sums, u64 rows, u64 parts, u64 n) {
    for (u64 i = index(); i < rows * parts; i += stride()) {
        u64 row = i / parts;
        double total[4] = {0.0, 0.0, 0.0, 0.0};
        for (u64 k = i % parts; k < n; k += parts) {
            double x = a[row * n + k], y = b[row * n + k];
            total[0] += x;
            total[1] += x * x;
            total[2] += y;
            total[3] += y * y;
        }
        for (u64 k = 0; k < 4; k++)
            sums[4 * i + k] = total[k];
    }
}

// Draws the spread of each row of `guided` back to that of the text's prediction, by the share `rescale`.
extern "C" __global__ void rescale_spread(float *guided, const double *sums, float rescale, u64 rows, u64 parts, u64 n) {
    for (u64 i = index(); i < rows * n; i += stride()) {
        const double *of_row = sums + 4 * parts * (i / n);
        double total[4] = {0.0, 0.0, 0.0, 0.0};
        for (u64 k = 0; k < 4 * parts; k++)
            total[k % 4] += of_row[k];
        double factor = spread(total[0], total[1], n) / spread(total[2], total[3], n);
        guided[i] *= (float)(rescale * factor + (1.0 - rescale));
    }
}
