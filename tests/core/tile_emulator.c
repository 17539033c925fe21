/* Carries out AMX's instructions where the CPU does not know them and raises SIGILL: decoded and done here, on tiles that are
 * the thread's own. What Intel's manual forbids (a tile without shapes, shapes that do not go together, a reserved byte) ends
 * the process with a message, and so, as before, does any other SIGILL.
 *
 * As a library that is preloaded (LD_PRELOAD) it keeps its handler: who else asks for SIGILL (Python's faulthandler) is handed
 * what this one does not know. */
#include "tile_emulator.h"

#include <dlfcn.h>
#include <math.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>
#include <unistd.h>

enum { TILES = 8, ROWS = 16, ROW_BYTES = 64 };

/* A handler may meet no lock and no allocation: the state is in the thread's own memory from its start on. */
static _Thread_local struct {
    bool set;
    uint16_t row_bytes[TILES];
    uint8_t rows[TILES];
    uint8_t tile[TILES][ROWS][ROW_BYTES];
    tile_counts counts;
} amx __attribute__((tls_model("initial-exec")));

static struct sigaction other; /* what someone else wants of SIGILL */

bool qv_emulates_tiles(void) {
    return true;
}

tile_counts count_tiles(void) {
    return amx.counts;
}

bool tiles_are_set(void) {
    return amx.set;
}

/* ---- decoding: a VEX prefix of three bytes, the opcode, ModRM, and for memory SIB and a displacement ---- */

typedef struct {
    int prefix, opcode; /* none, 66, F3, F2 as 0 .. 3 */
    int reg, rm, vvvv;  /* numbers of tiles */
    bool of_memory, has_sib;
    uint8_t *address;
    long long stride;
    const uint8_t *end;
} instruction;

static long long *general_register(ucontext_t *context, int number) {
    static const int place[16] = {REG_RAX, REG_RCX, REG_RDX, REG_RBX, REG_RSP, REG_RBP, REG_RSI, REG_RDI,
                                  REG_R8,  REG_R9,  REG_R10, REG_R11, REG_R12, REG_R13, REG_R14, REG_R15};
    return (long long *)&context->uc_mcontext.gregs[place[number]];
}

static const uint8_t *read_displacement(const uint8_t *p, size_t bytes, long long *value) {
    int8_t small = 0;
    int32_t large = 0;
    memcpy(bytes == 1 ? (void *)&small : (void *)&large, p, bytes);
    *value += bytes == 1 ? small : large;
    return p + bytes;
}

/* ModRM's operand in memory, p behind ModRM: its address, and what the index adds apart. */
static const uint8_t *read_address(instruction *i, ucontext_t *context, const uint8_t *p, int mod, bool X, bool B) {
    long long address = 0;
    i->has_sib = (i->rm & 7) == 4;
    if (i->has_sib) {
        int sib = *p++, index = (sib >> 3 & 7) | (X ? 8 : 0), base = (sib & 7) | (B ? 8 : 0);
        i->stride = index != 4 ? *general_register(context, index) * (1 << (sib >> 6)) : 0;
        if ((sib & 7) == 5 && mod == 0) {
            p = read_displacement(p, 4, &address);
        } else {
            address = *general_register(context, base);
        }
    } else if ((i->rm & 7) == 5 && mod == 0) {
        p = read_displacement(p, 4, &address);
        address += (long long)(intptr_t)p;
    } else {
        address = *general_register(context, (i->rm & 7) | (B ? 8 : 0));
    }
    if (mod == 1) {
        p = read_displacement(p, 1, &address);
    } else if (mod == 2) {
        p = read_displacement(p, 4, &address);
    }
    i->address = (uint8_t *)(intptr_t)address;
    return p;
}

/* False where it is none of AMX's: VEX.128, map 0F38, W0. */
static bool decode(instruction *i, ucontext_t *context, const uint8_t *p) {
    if (p[0] != 0xc4 || (p[1] & 31) != 2 || (p[2] & 0x84) != 0) {
        return false;
    }
    bool X = (p[1] & 0x40) == 0, B = (p[1] & 0x20) == 0;
    int mod = p[4] >> 6;
    *i = (instruction){.prefix = p[2] & 3, .opcode = p[3], .reg = p[4] >> 3 & 7, .rm = p[4] & 7, .vvvv = ~p[2] >> 3 & 15,
                       .of_memory = mod != 3};
    p += 5;
    i->end = i->of_memory ? read_address(i, context, p, mod, X, B) : p;
    return i->opcode == 0x49 || i->opcode == 0x4b || i->opcode == 0x5c || i->opcode == 0x5e;
}

/* ---- carrying out; each returns what is wrong, or NULL ---- */

static const char *configure(const uint8_t *from) {
    for (int t = 0; t < TILES; t++) {
        memcpy(&amx.row_bytes[t], from + 16 + 2 * t, 2);
        amx.rows[t] = from[48 + t];
        if (amx.row_bytes[t] > ROW_BYTES || amx.rows[t] > ROWS || (amx.row_bytes[t] == 0) != (amx.rows[t] == 0)) {
            return "LDTILECFG of shapes that no tile has";
        }
    }
    for (int byte = 2; byte < 64; byte++) {
        if (from[byte] != 0 && (byte < 16 || (byte >= 32 && byte < 48) || byte >= 56)) {
            return "LDTILECFG with a reserved byte";
        }
    }
    if (from[0] != 1) {
        return "LDTILECFG of another palette than 1";
    }
    amx.set = true;
    memset(amx.tile, 0, sizeof amx.tile);
    amx.counts.configurations++;
    return NULL;
}

static bool has_shape(int tile) {
    return amx.set && tile < TILES && amx.rows[tile] != 0;
}

static const char *move(const instruction *i) {
    if (!has_shape(i->reg) || !i->of_memory || !i->has_sib) {
        return "a load or store of a tile without shapes, or without a stride";
    }
    bool stores = i->prefix == 2;
    for (int r = 0; r < ROWS; r++) {
        uint8_t *row = amx.tile[i->reg][r], *memory = i->address + r * i->stride;
        if (stores && r < amx.rows[i->reg]) {
            memcpy(memory, row, amx.row_bytes[i->reg]);
        } else if (!stores) {
            memset(row, 0, ROW_BYTES);
            memcpy(row, memory, r < amx.rows[i->reg] ? amx.row_bytes[i->reg] : 0);
        }
    }
    amx.counts.stores += stores;
    amx.counts.loads += !stores;
    return NULL;
}

static const char *set_or_clear(const instruction *i) {
    if (i->prefix == 3 && !i->of_memory) { /* TILEZERO */
        if (!has_shape(i->reg)) {
            return "TILEZERO of a tile without shapes";
        }
        memset(amx.tile[i->reg], 0, sizeof amx.tile[0]);
        amx.counts.clears++;
    } else if (i->prefix == 0 && i->of_memory) {
        return configure(i->address);
    } else if (i->prefix == 0) { /* TILERELEASE */
        amx.set = false;
        amx.counts.releases++;
    } else {
        return "not known of opcode 49";
    }
    return NULL;
}

/* A number too small to be normal is zero, on the way in and out, whatever MXCSR says. */
static float flush(float x) {
    return fabsf(x) < 0x1p-126f ? copysignf(0.0f, x) : x;
}

static float bfloat16_at(const uint8_t *p) {
    uint32_t bits = (uint32_t)p[0] << 16 | (uint32_t)p[1] << 24;
    float x;
    memcpy(&x, &bits, sizeof x);
    return flush(x);
}

/* sums += x w: the even and the odd items of the depth are added up apart, from zero, then to one another and the sum. A
 * product of two items is exact as a float, so that adding it rounds once, as the instruction does. */
static void multiply_bfloat16(int sums, int x, int w) {
    int rows = amx.rows[sums], steps = amx.row_bytes[x] / 4;
    float columns[ROWS][2][16];
    for (int k = 0; k < steps; k++) {
        for (int n = 0; n < 16; n++) {
            columns[k][0][n] = bfloat16_at(amx.tile[w][k] + 4 * n);
            columns[k][1][n] = bfloat16_at(amx.tile[w][k] + 4 * n + 2);
        }
    }
    for (int m = 0; m < rows; m++) {
        float half[2][16] = {{0}}, out[16];
        for (int k = 0; k < steps; k++) {
            for (int item = 0; item < 2; item++) {
                float one = bfloat16_at(amx.tile[x][m] + 4 * k + 2 * item);
                for (int n = 0; n < 16; n++) {
                    half[item][n] = flush(half[item][n] + one * columns[k][item][n]);
                }
            }
        }
        memcpy(out, amx.tile[sums][m], sizeof out);
        for (int n = 0; n < amx.row_bytes[sums] / 4; n++) {
            out[n] = flush(flush(out[n]) + flush(half[0][n] + half[1][n]));
        }
        memcpy(amx.tile[sums][m], out, sizeof out);
    }
}

/* The same of four bytes a step, without saturation; x and w each signed or not. */
static void multiply_int8(int sums, int x, int w, bool x_signed, bool w_signed) {
    int count = amx.row_bytes[sums] / 4, steps = amx.row_bytes[x] / 4;
    for (int m = 0; m < amx.rows[sums]; m++) {
        int32_t out[16];
        memcpy(out, amx.tile[sums][m], sizeof out);
        for (int k = 0; k < 4 * steps; k++) {
            int first = x_signed ? (int8_t)amx.tile[x][m][k] : amx.tile[x][m][k];
            for (int n = 0; n < count; n++) {
                uint8_t byte = amx.tile[w][k / 4][4 * n + k % 4];
                out[n] = (int32_t)((uint32_t)out[n] + (uint32_t)(first * (w_signed ? (int8_t)byte : byte)));
            }
        }
        memcpy(amx.tile[sums][m], out, sizeof out);
    }
}

static const char *multiply(const instruction *i) {
    int sums = i->reg, x = i->rm, w = i->vvvv;
    if (i->of_memory || !has_shape(sums) || !has_shape(x) || !has_shape(w) || sums == x || sums == w || x == w) {
        return "a product of tiles that have no shapes, or of one twice";
    }
    if (amx.row_bytes[x] % 4 != 0 || amx.row_bytes[w] % 4 != 0 || amx.row_bytes[x] / 4 != amx.rows[w] ||
        amx.rows[x] != amx.rows[sums] || amx.row_bytes[w] != amx.row_bytes[sums]) {
        return "a product of shapes that do not go together";
    }
    if (i->opcode == 0x5c && i->prefix != 2) {
        return "not known of opcode 5C";
    }
    if (i->opcode == 0x5c) {
        multiply_bfloat16(sums, x, w);
        amx.counts.bfloat16_products++;
    } else {
        multiply_int8(sums, x, w, i->prefix >= 2, (i->prefix & 1) != 0);
        amx.counts.int8_products++;
    }
    return NULL;
}

/* ---- the signal ---- */

static void end_with(const char *why) {
    ssize_t unused = write(2, why, strlen(why));
    (void)!unused;
    unused = write(2, "\n", 1);
    (void)!unused;
    _Exit(99);
}

static void handle(int number, siginfo_t *info, void *place) {
    ucontext_t *context = place;
    instruction i;
    if (!decode(&i, context, (const uint8_t *)(intptr_t)context->uc_mcontext.gregs[REG_RIP])) {
        if ((other.sa_flags & SA_SIGINFO) != 0 && other.sa_sigaction != NULL) {
            other.sa_sigaction(number, info, place);
        } else if (other.sa_handler != SIG_DFL && other.sa_handler != SIG_IGN) {
            other.sa_handler(number);
        }
        end_with("an illegal instruction that is none of AMX's");
    }
    const char *wrong = i.opcode == 0x49 ? set_or_clear(&i) : i.opcode == 0x4b ? move(&i) : multiply(&i);
    if (wrong != NULL) {
        end_with(wrong);
    }
    context->uc_mcontext.gregs[REG_RIP] = (long long)(intptr_t)i.end;
}

typedef int set_action(int number, const struct sigaction *wanted, struct sigaction *before);

static set_action *find_system_sigaction(void) {
    void *found = dlsym(RTLD_NEXT, "sigaction");
    set_action *function;
    memcpy(&function, &found, sizeof function);
    return function;
}

/* In front of the C library's, for all of the process. */
PUBLIC int sigaction(int number, const struct sigaction *wanted, struct sigaction *before) {
    if (number != SIGILL) {
        return find_system_sigaction()(number, wanted, before);
    }
    if (before != NULL) {
        *before = other;
    }
    other = wanted != NULL ? *wanted : other;
    return 0;
}

__attribute__((constructor)) static void begin(void) {
    struct sigaction own;
    memset(&own, 0, sizeof own);
    own.sa_sigaction = handle;
    own.sa_flags = SA_SIGINFO | SA_NODEFER | SA_RESTART;
    sigemptyset(&own.sa_mask);
    if (find_system_sigaction()(SIGILL, &own, NULL) != 0) {
        end_with("no handler for SIGILL");
    }
}
