/* Exact top-k over blocks of traces.
 *
 * Called through ctypes, holds no Python state and no global, so any number of threads may be in
 * it. The same answers, id for id and bit for bit, come from index/scan.py in numpy; the layout of
 * a block is docs/index-format.md.
 *
 * How a search goes. Activations are never negative, so a term of negative weight can only lower a
 * score: its run is never read. For the positive terms:
 *   prime     score the best memories of the strongest terms (the heads) exactly: the k-th of them
 *             is a threshold nothing below can pass;
 *   cut       spend a share of that threshold on not reading the weak ends of runs, where most
 *             postings are: what they could add is known and bounded;
 *   scatter   per block, add weight x (upper bound - cutoff) of the postings left into one float a
 *             row: with all that was spent, it is then at least the score, whether a term of the row
 *             was read or not;
 *   complete  a row whose sum plus what was spent could reach the threshold is scored exactly from
 *             its forward row, in float64 and in ascending order of neurons.
 * Only completed scores are compared, so bounds decide how long a search takes and never what it
 * answers.
 *
 * Nothing read from a file is trusted: every offset, row and neuron is checked before it is used,
 * and each run and each chunk of rows is compared with its checksum when it is first read.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <float.h>

#define BLOCK_ROWS 65536
#define CHUNK_ROWS 128
#define LEVELS 128 /* of a histogram: the upper 7 bits below the sign of a float16 */
#define PRIMING_TERMS 8
#define LEAST_BUDGET 0x1p-60 /* of divided weights: float32 sums bound nothing far below 1 */
#define STRIDE 64 /* rows that a sweep looks at in one go */
#define AHEAD 16  /* rows that are fetched together before they are completed */
#define RUN_LINES 4 /* cache lines of codes that are fetched of a run, and twice as many of rows */
#define NEVER UINT32_MAX

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif
enum { NO_MEMORY = -1, DAMAGED = -2 };
enum { ABOVE, AT_LEAST, BELOW, AT_MOST };

typedef struct {
    int64_t rows, postings, width;
    int64_t first_id;          /* memory id of a row: first_id + id_offsets[row] */
    const void *id_offsets;    /* uint32, or int64 where wide_ids */
    int64_t wide_ids;
    const uint32_t *row_starts;   /* rows + 1 */
    const void *row_neurons;      /* uint16, or uint32 where width > 65536 */
    const uint16_t *row_values;   /* float16, as stored */
    const uint8_t *row_norms;     /* x norm_scale <= the root of the sum of the row */
    double norm_scale;
    double smallest_norm, mean_norm; /* of the rows in which anything fires */
    const uint32_t *run_starts;   /* width + 1; NULL: no runs, every row is read */
    const uint16_t *run_rows;     /* by descending activation, then ascending row */
    const uint8_t *run_codes;     /* x scale of the neuron >= the activation */
    const float *scales;          /* width */
    const uint8_t *alive;         /* one bit a row; NULL: all */
    const uint64_t *run_sums, *row_sums; /* NULL: built in this process, nothing to check */
    uint8_t *run_checked, *row_checked;
} Block;

typedef struct {
    int64_t blocks, heads;        /* it covers the first `blocks` blocks; heads a neuron */
    const uint32_t *head_places;  /* (width, heads): block << 16 | row, strongest first */
    const float *head_bounds;     /* (width, heads): at least their activations */
    const uint32_t *counts;       /* (width): memories a neuron fires for */
    const uint16_t *maxima;       /* (width, blocks) float16 */
    const uint32_t *histogram;    /* (width, LEVELS) */
} Summary;

typedef struct {
    int64_t k, width;
    int64_t terms;
    const uint32_t *neurons;       /* ascending */
    const double *weights;
    int64_t conditions;
    const uint32_t *bound_neurons;
    const uint8_t *operators;
    const double *bounds;
    int64_t needs_positive;        /* a positively weighted neuron must fire */
    int64_t has_floor;             /* only scores above it */
    double floor;
    int64_t cosine;                /* of the weights and the square roots of the activations */
    double query_norm;
    const uint8_t *const *allowed; /* a bitmap a block, or NULL */
    double share;                  /* of the threshold that cutting may spend */
} Query;

typedef struct {
    int64_t id;
    double score;
    int64_t place; /* block << 16 | row */
} Hit;

typedef struct {
    int64_t postings, completed, blocks;
    int64_t damaged; /* index of the block that failed its checks */
} Report;

/* Lent by the caller and reused: all zero when a search begins and when it ends. */
typedef struct {
    float *sums;       /* (BLOCK_ROWS) */
    double *weight_of; /* (width), 0 for neurons that are not asked for */
    uint16_t *noted;   /* (BLOCK_ROWS + 1), may hold anything */
} Scratch;

#define SEEN_SLOTS 2048

typedef struct {
    const Query *query;
    const Scratch *scratch;
    Hit *heap; /* the worst of the best k on top */
    int64_t found;
    Report *report;
    uint32_t seen[SEEN_SLOTS]; /* places that priming has scored: an open hash table */
    int64_t positives;
    uint32_t *counts;  /* postings read of each run of the block at hand */
    uint32_t *neurons; /* those of positive weight, and the weights divided by the largest */
    double *weights;
    double *cutoffs; /* postings whose bound is below are not read */
    double largest;
    double spent; /* what unread postings could add to a row, in divided weights */
    double cut_for; /* the threshold that the cutoffs were made for */
    float roots[256]; /* of the codes, rounded up */
} Search;

static void prefetch(const void *address)
{
#if defined(__GNUC__) || defined(__clang__)
    __builtin_prefetch(address);
    /* Else GCC takes what only prefetches for a function of no effect, and leaves its calls out. */
    __asm__ volatile("");
#else
    (void)address;
#endif
}

/* Positive float16 to double, exact, subnormals included. */
static double activation(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 13;
    float value;
    memcpy(&value, &bits, sizeof value);
    return (double)(value * 0x1p112f);
}

/* What a weight is multiplied by. Rounded as any sqrt is, so it keeps the order of activations and
 * bounds stay bounds. */
static double lifted(const Query *query, double value)
{
    return query->cosine ? sqrt(value) : value;
}

static uint32_t neuron_at(const Block *block, uint32_t place)
{
    return block->width > 65536 ? ((const uint32_t *)block->row_neurons)[place]
                                : ((const uint16_t *)block->row_neurons)[place];
}

static int64_t id_at(const Block *block, uint32_t row)
{
    return block->first_id + (block->wide_ids ? ((const int64_t *)block->id_offsets)[row]
                                              : (int64_t)((const uint32_t *)block->id_offsets)[row]);
}

static int bit(const uint8_t *bits, uint32_t row) { return bits[row >> 3] >> (row & 7) & 1; }

/* --- checksums -------------------------------------------------------------------------------
 * The sum over 8-byte little-endian words, zero-padded, of word x odd multiplier of its place, mod
 * 2^64: any change to one word changes it, and numpy computes it in one line. */

static uint64_t sum_of(const void *data, size_t size)
{
    const uint8_t *bytes = data;
    uint64_t sum = 0, factor = 0x9E3779B97F4A7C15u;
    for (; size >= 8; bytes += 8, size -= 8, factor += 2 * 0x9E3779B97F4A7C15u) {
        uint64_t word;
        memcpy(&word, bytes, 8);
        sum += word * factor;
    }
    if (size) {
        uint64_t word = 0;
        memcpy(&word, bytes, size);
        sum += word * factor;
    }
    return sum;
}

static uint64_t run_sum(const Block *block, uint32_t neuron)
{
    uint32_t start = block->run_starts[neuron], count = block->run_starts[neuron + 1] - start;
    return sum_of(block->run_rows + start, 2 * (size_t)count)
           + 31 * sum_of(block->run_codes + start, count);
}

static uint64_t chunk_sum(const Block *block, int64_t chunk)
{
    int64_t first = chunk * CHUNK_ROWS, last = first + CHUNK_ROWS;
    if (last > block->rows)
        last = block->rows;
    uint32_t start = block->row_starts[first], stop = block->row_starts[last];
    size_t wide = block->width > 65536 ? 4 : 2;
    return sum_of(block->row_starts + first, 4 * (size_t)(last - first + 1))
           + 31 * sum_of((const uint8_t *)block->row_neurons + wide * start, wide * (stop - start))
           + 961 * sum_of(block->row_values + start, 2 * (size_t)(stop - start))
           + 29791 * sum_of(block->row_norms + first, (size_t)(last - first));
}

static int run_is_sound(const Block *block, uint32_t neuron)
{
    if (!block->run_sums || block->run_checked[neuron])
        return 1;
    uint32_t start = block->run_starts[neuron], stop = block->run_starts[neuron + 1];
    if (start > stop || stop > block->postings || run_sum(block, neuron) != block->run_sums[neuron])
        return 0;
    block->run_checked[neuron] = 1;
    return 1;
}

static int row_is_sound(const Block *block, int64_t row)
{
    if (row >= block->rows)
        return 0;
    int64_t chunk = row / CHUNK_ROWS;
    if (!block->row_sums || block->row_checked[chunk])
        return 1;
    int64_t first = chunk * CHUNK_ROWS, last = first + CHUNK_ROWS;
    if (last > block->rows)
        last = block->rows;
    for (int64_t i = first; i < last; i++)
        if (block->row_starts[i] > block->row_starts[i + 1])
            return 0;
    if (block->row_starts[last] > block->postings
        || chunk_sum(block, chunk) != block->row_sums[chunk])
        return 0;
    block->row_checked[chunk] = 1;
    return 1;
}

/* --- one row, exactly ------------------------------------------------------------------------ */

static int holds(uint8_t operator, double value, double bound)
{
    switch (operator) {
    case ABOVE: return value > bound;
    case AT_LEAST: return value >= bound;
    case BELOW: return value < bound;
    default: return value <= bound;
    }
}

static int meets_conditions(const Block *block, uint32_t start, uint32_t stop, const Query *query)
{
    for (int64_t c = 0; c < query->conditions; c++) {
        double value = 0.0;
        for (uint32_t place = start; place < stop; place++)
            if (neuron_at(block, place) == query->bound_neurons[c]) {
                value = activation(block->row_values[place]);
                break;
            }
        if (!holds(query->operators[c], value, query->bounds[c]))
            return 0;
    }
    return 1;
}

/* Returns 1 and the score of a candidate, 0 where the row is none, DAMAGED. */
static int complete(const Block *block, uint32_t row, const Search *search, double *score)
{
    const Query *query = search->query;
    if (!row_is_sound(block, row))
        return DAMAGED;
    uint32_t start = block->row_starts[row], stop = block->row_starts[row + 1];
    double sum = 0.0, total = 0.0;
    int raised = 0;
    if (start > stop || stop > block->postings)
        return DAMAGED;
    for (uint32_t place = start; place < stop; place++) {
        uint32_t neuron = neuron_at(block, place);
        if (neuron >= query->width)
            return DAMAGED;
        double weight = search->scratch->weight_of[neuron];
        if (weight == 0.0 && !query->cosine)
            continue;
        double value = activation(block->row_values[place]);
        total += value;
        if (weight != 0.0)
            sum += weight * lifted(query, value);
        raised |= weight > 0;
    }
    if (query->needs_positive && !raised)
        return 0;
    if (query->cosine)
        sum /= sqrt(total) * query->query_norm;
    if ((query->has_floor && !(sum > query->floor))
        || !meets_conditions(block, start, stop, query))
        return 0;
    *score = sum;
    return 1;
}

/* --- the best k: a heap with the worst on top, order score descending, then id ascending ------ */

static int worse(Hit a, Hit b) { return a.score < b.score || (a.score == b.score && a.id > b.id); }

static void sift_down(Hit *heap, int64_t size, int64_t at)
{
    Hit moving = heap[at];
    for (int64_t child; (child = 2 * at + 1) < size; at = child) {
        if (child + 1 < size && worse(heap[child + 1], heap[child]))
            child++;
        if (!worse(heap[child], moving))
            break;
        heap[at] = heap[child];
    }
    heap[at] = moving;
}

static void keep(Search *search, Hit hit)
{
    Hit *heap = search->heap;
    if (search->found == search->query->k) {
        if (worse(heap[0], hit)) {
            heap[0] = hit;
            sift_down(heap, search->found, 0);
        }
        return;
    }
    int64_t at = search->found++;
    for (int64_t parent; at && worse(hit, heap[parent = (at - 1) / 2]); at = parent)
        heap[at] = heap[parent];
    heap[at] = hit;
}

/* The score that a memory must reach to matter; it may still lose a tie by its id. */
static double threshold(const Search *search)
{
    double floor = search->query->has_floor ? search->query->floor : -INFINITY;
    if (search->found < search->query->k)
        return floor;
    return search->heap[0].score > floor ? search->heap[0].score : floor;
}

/* No branch on the bits: of many rows half may pass. */
static int passes(const Block *block, int64_t number, uint32_t row, const Query *query)
{
    const uint8_t *allowed = query->allowed ? query->allowed[number] : NULL;
    return (block->alive ? bit(block->alive, row) : 1) & (allowed ? bit(allowed, row) : 1);
}

static int consider(Search *search, const Block *block, int64_t number, uint32_t row)
{
    if (row >= block->rows)
        return DAMAGED;
    if (!passes(block, number, row, search->query))
        return 0;
    double score;
    search->report->completed++;
    int found = complete(block, row, search, &score);
    /* An id is a cache miss: only what may stay is asked for its. */
    if (found == 1 && !(score < threshold(search)))
        keep(search, (Hit){id_at(block, row), score, number << 16 | row});
    return found;
}

/* --- prime ------------------------------------------------------------------------------------ */

/* Returns whether a place was seen before, and remembers it where `add`. */
static int seen(Search *search, uint32_t place, int add)
{
    uint32_t slot = place * 0x9E3779B1u >> 21;
    for (; search->seen[slot] != NEVER; slot = (slot + 1) % SEEN_SLOTS)
        if (search->seen[slot] == place)
            return 1;
    if (add)
        search->seen[slot] = place;
    return 0;
}

static double peak(const Summary *summary, uint32_t neuron)
{
    uint16_t found = 0;
    const uint16_t *maxima = summary->maxima + (size_t)neuron * (size_t)summary->blocks;
    for (int64_t b = 0; b < summary->blocks; b++)
        found = maxima[b] > found ? maxima[b] : found; /* float16 > 0 order as their bits do */
    return activation(found);
}

/* Puts the positive terms that can add most first; returns how many of them to prime with. */
static int64_t strongest(const Search *search, const Summary *summary, int64_t *chosen)
{
    double reach[PRIMING_TERMS];
    int64_t count = 0;
    for (int64_t t = 0; t < search->positives; t++) {
        double own = search->weights[t] * lifted(search->query, peak(summary, search->neurons[t]));
        int64_t at = count;
        while (at && reach[at - 1] < own)
            at--;
        if (at == PRIMING_TERMS)
            continue;
        if (count < PRIMING_TERMS)
            count++;
        for (int64_t i = count - 1; i > at; i--)
            reach[i] = reach[i - 1], chosen[i] = chosen[i - 1];
        reach[at] = own, chosen[at] = t;
    }
    return count;
}

/* Rows to complete lie all over the store: fetch their parts before they are needed. */
static void fetch(const Block *block, uint32_t row, int stage)
{
    if (row >= block->rows)
        return;
    if (!stage) {
        prefetch(block->row_starts + row);
        return;
    }
    uint32_t start = block->row_starts[row], stop = block->row_starts[row + 1];
    if (start >= stop || stop > block->postings)
        return;
    size_t wide = block->width > 65536 ? 4 : 2;
    prefetch((const uint8_t *)block->row_neurons + wide * start);
    prefetch((const uint8_t *)block->row_neurons + wide * stop - 1); /* mostly another line */
    prefetch(block->row_values + start);
    prefetch(block->row_values + stop - 1);
}

/* How many heads of a neuron that pass the filter are scored: enough for a threshold, few as each is
 * a cache miss or three. More hardly raised it, on real traces and on independent ones. */
static int64_t enough(const Search *search) { return search->query->k + 8; }

static int64_t heads_of(const Summary *summary, uint32_t neuron)
{
    return summary->heads < summary->counts[neuron] ? summary->heads : summary->counts[neuron];
}

static void fetch_heads(const Search *search, const Block *const *blocks, const Summary *summary,
                        const int64_t *chosen, int64_t terms, int stage)
{
    for (int64_t c = 0; c < terms; c++) {
        uint32_t neuron = search->neurons[chosen[c]];
        const uint32_t *heads = summary->head_places + (size_t)neuron * (size_t)summary->heads;
        int64_t count = heads_of(summary, neuron);
        for (int64_t i = 0; i < count && i < enough(search); i++)
            if (heads[i] >> 16 < summary->blocks)
                fetch(blocks[heads[i] >> 16], heads[i] & 0xFFFF, stage);
    }
}

static int prime(Search *search, const Block *const *blocks, const Summary *summary)
{
    int64_t chosen[PRIMING_TERMS];
    int64_t terms = strongest(search, summary, chosen);
    for (int stage = 0; stage < 2; stage++)
        fetch_heads(search, blocks, summary, chosen, terms, stage);
    int alone = search->positives == 1 && !search->query->cosine;
    for (int64_t c = 0; c < terms; c++) {
        uint32_t neuron = search->neurons[chosen[c]];
        const uint32_t *heads = summary->head_places + (size_t)neuron * (size_t)summary->heads;
        const float *bounds = summary->head_bounds + (size_t)neuron * (size_t)summary->heads;
        int64_t count = heads_of(summary, neuron), left = enough(search);
        for (int64_t i = 0; i < count && left > 0; i++) {
            uint32_t row = heads[i] & 0xFFFF;
            if (alone && search->largest * bounds[i] < threshold(search))
                break;
            int64_t number = heads[i] >> 16;
            if (number >= summary->blocks)
                return DAMAGED;
            if (seen(search, heads[i], 1))
                continue;
            if (row < blocks[number]->rows && !passes(blocks[number], number, row, search->query))
                continue;
            left--;
            int status = consider(search, blocks[number], number, row);
            if (status < 0) {
                search->report->damaged = number;
                return status;
            }
        }
    }
    return 0;
}

/* --- cut -------------------------------------------------------------------------------------- */

/* Sets the cutoffs that pay at this price (postings a unit of score); returns what they spend. */
static double choose(Search *search, const Summary *summary, double price)
{
    double spent = 0.0;
    for (int64_t t = 0; t < search->positives; t++) {
        const uint32_t *counts = summary->histogram + (size_t)search->neurons[t] * LEVELS;
        double unread = 0.0, best = 0.0;
        search->cutoffs[t] = 0.0;
        for (int level = 1; level < LEVELS; level++) {
            if (!counts[level - 1])
                continue;
            unread += counts[level - 1];
            double edge = activation((uint16_t)(level << 8));
            double gain = unread - price * search->weights[t] * lifted(search->query, edge);
            if (gain > best)
                best = gain, search->cutoffs[t] = edge;
        }
        spent += search->weights[t] * lifted(search->query, search->cutoffs[t]);
    }
    return spent;
}

/* Leaves the most postings unread that the budget allows: one price for all terms, by bisection. */
static void cut(Search *search, const Summary *summary, double budget)
{
    double postings = 1.0;
    search->spent = 0.0;
    for (int64_t t = 0; t < search->positives; t++)
        search->cutoffs[t] = 0.0;
    if (!summary || !(budget > LEAST_BUDGET))
        return;
    for (int64_t t = 0; t < search->positives; t++)
        postings += summary->counts[search->neurons[t]];
    double low = postings / budget * 1e-3, high = postings / budget * 1e3;
    for (int step = 0; step < 6; step++) {
        double price = sqrt(low * high);
        if (choose(search, summary, price) <= budget)
            high = price;
        else
            low = price;
    }
    search->spent = choose(search, summary, high);
    /* Cutoffs go by levels of the histogram: what that left of the budget is spent on all alike,
     * but no more than twice what pays. */
    if (!(search->spent > 0))
        return;
    double rest = budget / search->spent;
    rest = rest < 2.0 ? rest : 2.0;
    for (int64_t t = 0; t < search->positives; t++)
        search->cutoffs[t] *= search->query->cosine ? rest * rest : rest;
    search->spent *= rest * (1.0 + 0x1p-40);
}

/* --- blocks ----------------------------------------------------------------------------------- */

/* The smallest code of a run whose bound reaches `cutoff`; 256 where none does. */
static uint32_t lowest_code(double scale, double cutoff)
{
    if (cutoff <= 0)
        return 0;
    double exact = ceil(cutoff / scale);
    if (!(exact <= 256.0))
        return 256;
    uint32_t code = (uint32_t)exact;
    while (code && (code - 1) * scale >= cutoff) /* a division rounds; products decide */
        code--;
    while (code < 256 && code * scale < cutoff)
        code++;
    return code;
}

/* How many codes of a run, which descend, are at least `least`. Gallops: what is left out is long. */
static uint32_t prefix(const uint8_t *codes, uint32_t count, uint32_t least)
{
    uint32_t low = 0, step = 64;
    while (low + step <= count && codes[low + step - 1] >= least)
        low += step, step *= 2;
    uint32_t high = low + step <= count ? low + step - 1 : count;
    while (low < high) {
        uint32_t middle = low + (high - low) / 2;
        if (codes[middle] >= least)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* One positive term: its run comes by descending bound, so it can be left at the threshold. */
static int walk(Search *search, const Block *block, int64_t number)
{
    uint32_t neuron = search->neurons[0];
    double weight = search->largest, scale = block->scales[neuron];
    if (!run_is_sound(block, neuron))
        return DAMAGED;
    uint32_t stop = block->run_starts[neuron + 1];
    for (uint32_t place = block->run_starts[neuron]; place < stop; place++) {
        if (weight * (block->run_codes[place] * scale) < threshold(search))
            break;
        search->report->postings++;
        uint32_t row = block->run_rows[place];
        if (seen(search, (uint32_t)number << 16 | row, 0))
            continue;
        int status = consider(search, block, number, row);
        if (status < 0)
            return status;
    }
    return 0;
}

/* Sums are float32: this covers the rounding of every addition, and some. */
static double slack(const Search *search) { return (double)(search->positives + 8) * 0x1p-22; }

/* What a row must reach with the sum of the postings read: `flat`, plus `slope` times the code of
 * its norm for a cosine. In divided weights; a row with nothing read may be left out where
 * `untouched` says so. */
typedef struct {
    float flat, slope;
    int untouched;
} Line;

static Line line(const Search *search, const Block *block)
{
    double need = threshold(search) / search->largest, more = 1.0 - slack(search);
    Line found = {0};
    if (search->query->cosine) {
        need *= search->query->query_norm;
        found.slope = need > 0 ? (float)(need * block->norm_scale * more * more) : 0.0f;
        found.flat = (float)(-search->spent * (1.0 + 0x1p-22));
        found.untouched = search->spent > 0 && !(search->spent < need * block->smallest_norm * more);
        return found;
    }
    need -= search->spent;
    need -= fabs(need) * slack(search);
    found.flat = need > FLT_MIN ? (float)need * (1.0f - 0x1p-22f) : FLT_MIN;
    return found;
}

static int reaches(Line least, float sum, uint8_t norm)
{
    return sum >= least.flat + least.slope * norm;
}

static int settle(Search *search, const Block *block, int64_t number, uint32_t row, Line *least)
{
    if (seen(search, (uint32_t)number << 16 | row, 0))
        return 0;
    int status = consider(search, block, number, row);
    if (status == 1)
        *least = line(search, block);
    return status;
}

/* Eight products at a time, which compilers turn into vectors; the sums cannot be. */
static void add_up(float *sums, const uint16_t *rows, const uint8_t *codes, uint32_t count,
                   float unit, float less)
{
    uint32_t i = 0;
    for (; i + 8 <= count; i += 8) {
        float bounds[8];
        for (int j = 0; j < 8; j++)
            bounds[j] = unit * codes[i + j] - less;
        for (int j = 0; j < 8; j++)
            sums[rows[i + j]] += bounds[j];
    }
    for (; i < count; i++)
        sums[rows[i]] += unit * codes[i] - less;
}

/* The same, and notes each row when its sum comes to reach `flat`: once, as sums never fall.
 * Returns how many are noted by now. No branch: which posting does it cannot be foretold. */
static uint32_t add_and_note(const Scratch *scratch, uint32_t noted, const uint16_t *rows,
                             const uint8_t *codes, uint32_t count, float unit, float less,
                             float flat)
{
    float *sums = scratch->sums;
    for (uint32_t i = 0; i < count; i++) {
        float more = unit * codes[i] - less, before = sums[rows[i]], after = before + more;
        sums[rows[i]] = after;
        scratch->noted[noted] = rows[i];
        noted += (before < flat) & (after >= flat);
    }
    return noted;
}

/* The same as add_up for bounds under a root: there are 256 of them, ready at `root[code]`. */
static void add_roots(float *sums, const uint16_t *rows, const uint8_t *codes, uint32_t count,
                      float unit, float less, const float *root)
{
    float bounds[256];
    for (int code = 0; code < 256; code++)
        bounds[code] = unit * root[code] - less;
    for (uint32_t i = 0; i < count; i++)
        sums[rows[i]] += bounds[codes[i]];
}

/* Counts the postings of each run that are read; returns how many those are, or DAMAGED. */
static int64_t measure(Search *search, const Block *block)
{
    int64_t postings = 0;
    for (int64_t t = 0; t < search->positives; t++) {
        uint32_t neuron = search->neurons[t];
        if (!run_is_sound(block, neuron))
            return DAMAGED;
        uint32_t start = block->run_starts[neuron], stop = block->run_starts[neuron + 1];
        uint32_t least = lowest_code(block->scales[neuron], search->cutoffs[t]);
        search->counts[t] = prefix(block->run_codes + start, stop - start, least);
        postings += search->counts[t];
    }
    return postings;
}

/* Adds up the bounds of the postings that are read. With `flat`, returns how many rows came to
 * reach it; they are noted. */
static uint32_t scatter(Search *search, const Block *block, const float *flat)
{
    const Scratch *scratch = search->scratch;
    uint32_t noted = 0;
    for (int64_t t = 0; t < search->positives; t++) {
        uint32_t neuron = search->neurons[t], count = search->counts[t];
        const uint16_t *rows = block->run_rows + block->run_starts[neuron];
        const uint8_t *codes = block->run_codes + block->run_starts[neuron];
        double step = lifted(search->query, block->scales[neuron]);
        float unit = (float)(search->weights[t] * step) * (1.0f + 0x1p-22f);
        unit = unit > FLT_MIN ? unit : FLT_MIN;
        double cutoff = lifted(search->query, search->cutoffs[t]);
        float less = (float)(search->weights[t] * cutoff) * (1.0f - 0x1p-22f);
        if (search->query->cosine)
            add_roots(scratch->sums, rows, codes, count, unit, less, search->roots);
        else if (flat)
            noted = add_and_note(scratch, noted, rows, codes, count, unit, less, *flat);
        else
            add_up(scratch->sums, rows, codes, count, unit, less);
    }
    return noted;
}

/* Makes all sums zero again: one by one where that is less. */
static void wipe(Search *search, const Block *block, int64_t postings)
{
    float *sums = search->scratch->sums;
    if (postings * 16 > block->rows) {
        memset(sums, 0, BLOCK_ROWS * sizeof *sums);
        return;
    }
    for (int64_t t = 0; t < search->positives; t++) {
        const uint16_t *rows = block->run_rows + block->run_starts[search->neurons[t]];
        for (uint32_t i = 0; i < search->counts[t]; i++)
            sums[rows[i]] = 0.0f;
    }
}

/* Whether a row reaches the line. A norm is a cache miss: only a cosine looks at it. */
static int due(const Search *search, const Block *block, uint32_t row, Line least)
{
    float sum = search->scratch->sums[row];
    return search->query->cosine ? reaches(least, sum, block->row_norms[row]) : sum >= least.flat;
}

/* Completes up to AHEAD rows, fetched together, but for those that a risen line leaves out. */
static int settle_all(Search *search, const Block *block, int64_t number, const uint16_t *rows,
                      int count, Line *least)
{
    int status = 0;
    for (int stage = 0; stage < 2; stage++)
        for (int i = 0; i < count; i++)
            fetch(block, rows[i], stage);
    for (int i = 0; i < count && status >= 0; i++) {
        if (due(search, block, rows[i], *least))
            status = settle(search, block, number, rows[i], least);
        search->scratch->sums[rows[i]] = 0.0f; /* twice noted, as by a damaged run: once settled */
    }
    return status;
}

/* Few postings, no cosine: notes the rows that reach the line while adding up. */
static int pick(Search *search, const Block *block, int64_t number)
{
    const Scratch *scratch = search->scratch;
    Line least = line(search, block);
    uint16_t rows[AHEAD];
    int filled = 0, status = 0;
    uint32_t count = scatter(search, block, &least.flat);
    for (uint32_t i = 0; i < count && status >= 0; i++) {
        uint16_t row = scratch->noted[i];
        if (row >= block->rows)
            return DAMAGED;
        rows[filled] = row;
        filled += passes(block, number, row, search->query) & due(search, block, row, least);
        if (filled == AHEAD || i + 1 == count) {
            status = settle_all(search, block, number, rows, filled, &least);
            filled = 0;
        }
    }
    return status;
}

/* Whether any of STRIDE rows reaches the line: a loop that compilers turn into vectors. */
static int any_reaches(Line least, const float *sums, const uint8_t *norms, int cosine)
{
    int any = 0;
    if (cosine)
        for (int i = 0; i < STRIDE; i++)
            any |= reaches(least, sums[i], norms[i]);
    else
        for (int i = 0; i < STRIDE; i++)
            any |= sums[i] >= least.flat;
    return any;
}

/* Many postings, or a cosine: adds up, then looks at all rows. */
static int sweep(Search *search, const Block *block, int64_t number)
{
    const float *sums = search->scratch->sums;
    const uint8_t *norms = block->row_norms;
    Line least = line(search, block);
    uint16_t rows[AHEAD];
    int cosine = search->query->cosine != 0, filled = 0, status = 0;
    scatter(search, block, NULL);
    for (uint32_t first = 0; first < block->rows && status >= 0; first += STRIDE) {
        uint32_t stop = first + STRIDE < block->rows ? first + STRIDE : (uint32_t)block->rows;
        if (stop == first + STRIDE && !any_reaches(least, sums + first, norms + first, cosine))
            continue;
        for (uint32_t row = first; row < stop && status >= 0; row++) {
            if (!(sums[row] > 0.0f || least.untouched) || !reaches(least, sums[row], norms[row]))
                continue;
            rows[filled] = (uint16_t)row;
            filled += passes(block, number, row, search->query);
            if (filled == AHEAD) {
                status = settle_all(search, block, number, rows, filled, &least);
                filled = 0;
            }
        }
    }
    return status < 0 ? status : settle_all(search, block, number, rows, filled, &least);
}

/* The most that any row of a block could score, in divided weights. */
static double most(const Search *search, const Block *block, int64_t number, const Summary *summary)
{
    double sum = 0.0;
    for (int64_t t = 0; t < search->positives; t++) {
        uint32_t neuron = search->neurons[t];
        if (summary && number < summary->blocks) {
            size_t place = (size_t)neuron * (size_t)summary->blocks + (size_t)number;
            sum += search->weights[t] * activation(summary->maxima[place]);
        } else if (block->run_starts[neuron] < block->run_starts[neuron + 1]) {
            sum += search->weights[t] * (255.0 * block->scales[neuron]);
        }
    }
    return sum * (1.0 + (double)(search->positives + 8) * 0x1p-50);
}

static int read_block(Search *search, const Block *block, int64_t number, const Summary *summary)
{
    const Query *query = search->query;
    int status = 0;
    if (!block->run_starts) {
        for (uint32_t row = 0; row < block->rows && status >= 0; row++)
            status = consider(search, block, number, row);
        return status;
    }
    if (!query->cosine && most(search, block, number, summary) < threshold(search) / search->largest)
        return 0;
    search->report->blocks++;
    if (search->positives == 1 && !query->cosine)
        return walk(search, block, number);
    double best = threshold(search);
    if (best > search->cut_for * 1.1) {
        double scale = query->cosine ? query->query_norm * block->mean_norm : 1.0;
        cut(search, summary, query->share * best * scale / search->largest);
        search->cut_for = best;
    }
    int64_t postings = measure(search, block);
    if (postings < 0)
        return DAMAGED;
    search->report->postings += postings;
    int few = postings * 4 < block->rows && !query->cosine;
    status = few ? pick(search, block, number) : sweep(search, block, number);
    wipe(search, block, postings);
    return status;
}

/* What a block is read by lies all over it: fetch that of the next two while one is read. The rest
 * of a run comes in order, and needs no help. */
static void fetch_runs(const Search *search, const Block *block, int stage)
{
    if (!block->run_starts)
        return;
    for (int64_t t = 0; t < search->positives; t++) {
        uint32_t neuron = search->neurons[t];
        if (!stage) {
            prefetch(block->run_starts + neuron);
            prefetch(block->scales + neuron);
            continue;
        }
        uint32_t start = block->run_starts[neuron];
        if (start >= block->postings)
            continue;
        for (uint32_t line = 0; line < RUN_LINES; line++) {
            prefetch(block->run_rows + start + 64 * line);
            prefetch(block->run_rows + start + 64 * line + 32);
            prefetch(block->run_codes + start + 64 * line);
        }
    }
}

static int read_blocks(Search *search, const Block *const *blocks, int64_t count,
                       const Summary *summary)
{
    int alone = search->positives == 1 && !search->query->cosine; /* which passes most blocks by */
    for (int64_t number = 0; number < count; number++) {
        for (int stage = 0; stage < 2 && !alone; stage++)
            if (number + 2 - stage < count)
                fetch_runs(search, blocks[number + 2 - stage], stage);
        int status = read_block(search, blocks[number], number, summary);
        if (status < 0) {
            search->report->damaged = number;
            return status;
        }
    }
    return 0;
}

/* --- what ctypes calls ------------------------------------------------------------------------ */

/* Raised with every change to a struct or a function here; index/native.py must say the same. */
EXPORT int64_t memstore_kernel_version(void) { return 5; }

static int take_terms(Search *search)
{
    const Query *query = search->query;
    size_t n = (size_t)query->terms + 1;
    search->neurons = malloc(n * sizeof *search->neurons);
    search->weights = malloc(n * sizeof *search->weights);
    search->cutoffs = calloc(n, sizeof *search->cutoffs);
    search->counts = malloc(n * sizeof *search->counts);
    if (!search->neurons || !search->weights || !search->cutoffs || !search->counts)
        return NO_MEMORY;
    for (int64_t t = 0; t < query->terms; t++) {
        search->scratch->weight_of[query->neurons[t]] = query->weights[t];
        if (query->weights[t] > search->largest)
            search->largest = query->weights[t];
    }
    for (int64_t t = 0; t < query->terms; t++)
        if (query->weights[t] > 0) {
            search->neurons[search->positives] = query->neurons[t];
            search->weights[search->positives++] = query->weights[t] / search->largest;
        }
    return 0;
}

static void put_back(Search *search)
{
    for (int64_t t = 0; t < search->query->terms; t++)
        search->scratch->weight_of[search->query->neurons[t]] = 0.0;
    free(search->neurons);
    free(search->weights);
    free(search->cutoffs);
    free(search->counts);
}

/* Fills in weight x activation of each term for each hit, 0 where the neuron is silent. */
static void share_out(const Search *search, const Block *const *blocks, double *shares)
{
    const Query *query = search->query;
    for (int64_t i = 0; i < search->found; i++, shares += query->terms) {
        const Block *block = blocks[search->heap[i].place >> 16];
        int64_t row = search->heap[i].place & 0xFFFF, t = 0;
        for (uint32_t place = block->row_starts[row]; place < block->row_starts[row + 1]; place++) {
            uint32_t neuron = neuron_at(block, place);
            while (t < query->terms && query->neurons[t] < neuron)
                t++;
            if (t < query->terms && query->neurons[t] == neuron)
                shares[t] = query->weights[t] * activation(block->row_values[place]);
        }
    }
}

/* Finds the k best of blocks; returns how many there are, in order, or NO_MEMORY or DAMAGED.
 * At least one term must have a positive weight. `hits` has room for k; `shares`, unless NULL, for
 * k x terms, all zero. */
EXPORT int64_t memstore_search(const Block *const *blocks, int64_t count, const Summary *summary,
                               const Query *query, const Scratch *scratch, Hit *hits,
                               double *shares, Report *report)
{
    Search search = {.query = query, .scratch = scratch, .heap = hits, .report = report};
    memset(search.seen, 0xFF, sizeof search.seen);
    for (int code = 0; query->cosine && code < 256; code++)
        search.roots[code] = sqrtf((float)code) * (1.0f + 0x1p-22f);
    memset(report, 0, sizeof *report);
    int status = take_terms(&search);
    if (status == 0 && summary)
        status = prime(&search, blocks, summary);
    if (status == 0)
        status = read_blocks(&search, blocks, count, summary);
    put_back(&search);
    if (status < 0)
        return status;
    for (int64_t size = search.found; size > 1;) { /* heap sort: the worst goes last */
        Hit last = hits[0];
        hits[0] = hits[--size];
        hits[size] = last;
        sift_down(hits, size, 0);
    }
    if (shares)
        share_out(&search, blocks, shares);
    return search.found;
}

/* Scores rows of one block one by one, all of them where `rows` is NULL: passing[i] says whether
 * rows[i] is a candidate, scores[i] its score. Returns 0, or DAMAGED. */
EXPORT int64_t memstore_score(const Block *block, const Query *query, const Scratch *scratch,
                              const uint32_t *rows, int64_t count, double *scores,
                              uint8_t *passing)
{
    Search search = {.query = query, .scratch = scratch};
    int status = 0;
    for (int64_t t = 0; t < query->terms; t++)
        scratch->weight_of[query->neurons[t]] = query->weights[t];
    for (int64_t i = 0; i < count && status >= 0; i++) {
        uint32_t row = rows ? rows[i] : (uint32_t)i;
        if (rows && i + 8 < count && rows[i + 8] < block->rows)
            prefetch(block->row_starts + rows[i + 8]);
        status = row >= block->rows ? DAMAGED : 0;
        if (status == 0 && passes(block, 0, row, query))
            status = complete(block, row, &search, scores + i);
        passing[i] = status == 1;
    }
    for (int64_t t = 0; t < query->terms; t++)
        scratch->weight_of[query->neurons[t]] = 0.0;
    return status < 0 ? status : 0;
}
