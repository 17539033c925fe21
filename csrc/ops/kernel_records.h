/* The end of kernel_template.h: its products as records, and KERNELS, the table of all that was compiled before. */

#define INT8_RECORD(columns)                                                                                              \
    .precision = QV_PRECISION_INT8, .dtype = QV_INT8, .items = 4, .row_tail = 2, .panel_tail = 2, .panel_columns = (columns), \
    .most_columns = (columns), .packs_layers = true

static const qv_product products[] = {
    {
        .name = NAME,
        .few_rows = FEW_ROWS,
        .precision = QV_PRECISION_FLOAT32,
        .dtype = QV_FLOAT32,
        .items = 1,
        .row_words = 1,
        .panel_columns = PANEL,
        .most_columns = PANEL,
        .tile_rows = TILE_ROWS,
        .packs_layers = PACKS_LAYERS,
        .multiply = multiply_float32,
        .join_rows = copy_row,
        .exponentiate = exponentiate_float32,
        .burn = burn_float32,
    },
#if defined(TILES_NAME)
    {
        .name = TILES_NAME,
        .precision = QV_PRECISION_BFLOAT16,
        .dtype = QV_BFLOAT16,
        .items = 2,
        .row_words = 1,
        .panel_columns = QV_MAX_PANEL,
        .most_columns = SIZE_MAX,
        .tile_rows = 16,
        .packs_layers = PACKS_LAYERS,
        .runs = has_tiles,
        .multiply = multiply_tiles,
        .write_steps = write_pairs,
        .read_steps = read_pairs,
        .join_rows = join_pairs,
        .exponentiate = exponentiate_bfloat16,
        .burn = qv_burn_tiles,
    },
#endif
#if defined(BFLOAT16_NAME)
    {
        .name = BFLOAT16_NAME,
        .few_rows = FEW_ROWS,
        .precision = QV_PRECISION_BFLOAT16,
        .dtype = QV_BFLOAT16,
        .items = 2,
        .row_words = 1,
        .panel_columns = PANEL,
        .most_columns = PANEL,
        .tile_rows = TILE_ROWS,
        .packs_layers = PACKS_LAYERS,
        .runs = has_bfloat16,
        .multiply = multiply_bfloat16,
        .write_steps = write_pairs,
        .read_steps = read_pairs,
        .join_rows = join_pairs,
        .exponentiate = exponentiate_bfloat16,
        .burn = burn_bfloat16,
    },
#endif
#if defined(TILES_NAME)
    {
        /* Rows as dot products of four bytes have them; to write them takes none. */
        INT8_RECORD(QV_MAX_PANEL),
        .name = TILES_NAME,
        .row_words = 1,
        .tile_rows = 16,
        .runs = has_tiles,
        .multiply = multiply_byte_tiles,
        .write_steps = write_bytes,
        .burn = qv_burn_byte_tiles,
    },
#endif
#if defined(BYTES_NAME)
    {
        INT8_RECORD(PANEL),
        .name = BYTES_NAME,
        .few_rows = FEW_ROWS,
        .row_words = 1,
        .tile_rows = TILE_ROWS,
        .runs = has_bytes,
        .multiply = multiply_bytes,
        .write_steps = write_bytes,
        .burn = burn_bytes,
    },
#endif
    {
        INT8_RECORD(PANEL),
        .name = INT8_NAME,
        .few_rows = FEW_ROWS,
        .row_words = 2,
        .spare_words = 2,
        .tile_rows = TILE_ROWS,
        .multiply = multiply_spread,
        .write_steps = write_spread,
        .burn = burn_spread,
    },
};

const qv_kernels KERNELS = {
    .products = products,
    .product_count = sizeof products / sizeof products[0],
    .activate = activate,
    .find_slopes = find_slopes,
    .scale = scale_row,
    .dot = dot,
    .add_scaled = add_scaled,
    .add_positive = add_positive,
    .score_gradient = score_gradient,
    .transpose = transpose,
    .norm = norm_row,
    .norm_backward = norm_row_backward,
};
