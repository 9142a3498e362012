"""What the C functions are asked, field by field as the C files declare it."""

import ctypes

Pointer, Long, Int, Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class Product(ctypes.Structure):
    """struct product"""

    _fields_ = [
        *((name, Pointer) for name in ("x", "weight", "bias", "out", "scales")),
        *((name, Long) for name in ("rows", "x_stride", "outs", "width")),
        *((name, Int) for name in ("kind", "weight_kind")),
    ]


class PackedWeight(ctypes.Structure):
    """struct packed_weight"""

    _fields_ = [*((name, Pointer) for name in ("data", "bias", "scales", "out")), ("outs", Long)]


class PackedProduct(ctypes.Structure):
    """struct packed"""

    _fields_ = [
        *((name, Pointer) for name in ("x", "weights")),
        *((name, Long) for name in ("count", "rows", "x_stride", "width")),
        *((name, Int) for name in ("kind", "weight_kind", "has_gelu")),
    ]


class Lora(ctypes.Structure):
    """struct lora"""

    _fields_ = [
        *((name, Pointer) for name in ("x", "down", "up", "out", "slots")),
        *((name, Long) for name in ("rows", "x_stride", "width", "outs", "num_slots", "rank")),
        ("kind", Int),
    ]


class Attention(ctypes.Structure):
    """struct attention"""

    _fields_ = [
        *((name, Pointer) for name in ("q", "k", "v", "out", "row_starts", "num_keys", "table", "key_starts", "bias")),
        *((name, Long) for name in ("sequences", "heads", "kv_heads", "head_dim", "q_stride", "kv_stride")),
        *((name, Long) for name in ("table_stride", "page_size", "window", "bias_offset", "bias_stride")),
        ("scale", Float),
        *((name, Int) for name in ("kind", "is_causal")),
    ]


class RmsNorm(ctypes.Structure):
    """struct rms_norm"""

    _fields_ = [
        *((name, Pointer) for name in ("x", "other", "weight", "sum", "out")),
        *((name, Long) for name in ("rows", "x_stride", "width")),
        *(("eps", Float), ("kind", Int)),
    ]


class LayerNorm(ctypes.Structure):
    """struct layer_norm"""

    _fields_ = [
        *((name, Pointer) for name in ("x", "y", "weight", "bias", "out")),
        *(("rows", Long), ("width", Long), ("eps", Float), ("kind", Int)),
    ]


class Sum(ctypes.Structure):
    """struct sum"""

    _fields_ = [*((name, Pointer) for name in ("x", "y", "out")), ("count", Long), ("kind", Int)]


class Angles(ctypes.Structure):
    """struct angles"""

    _fields_ = [
        *((name, Pointer) for name in ("positions", "frequencies", "cosines", "sines")),
        *(("rows", Long), ("half", Long), ("factor", Float)),
    ]


class Rotary(ctypes.Structure):
    """struct rotary"""

    _fields_ = [
        *((name, Pointer) for name in ("x", "out", "cosines", "sines")),
        *((name, Long) for name in ("rows", "x_stride", "heads", "width", "half", "run")),
        ("kind", Int),
    ]


class Turning(ctypes.Structure):
    """struct turning"""

    _fields_ = [
        *((name, Pointer) for name in ("q", "k", "v", "out", "k_pages", "v_pages", "cosines", "sines", "slots")),
        *((name, Long) for name in ("rows", "heads", "kv_heads", "width", "half", "run")),
        *((name, Long) for name in ("q_stride", "k_stride", "v_stride")),
        ("kind", Int),
    ]


class Gating(ctypes.Structure):
    """struct gating"""

    _fields_ = [
        *((name, Pointer) for name in ("gate", "up", "out")),
        *((name, Long) for name in ("rows", "width", "gate_stride", "up_stride")),
        ("kind", Int),
    ]


class PageWrite(ctypes.Structure):
    """struct page_write"""

    _fields_ = [
        *((name, Pointer) for name in ("rows", "pages", "slots")),
        *((name, Long) for name in ("count", "row_stride", "bytes")),
    ]


class Lookup(ctypes.Structure):
    """struct lookup"""

    _fields_ = [
        *((name, Pointer) for name in ("ids", "table", "out")),
        *((name, Long) for name in ("count", "length", "bytes")),
    ]


class Argmax(ctypes.Structure):
    """struct argmax"""

    _fields_ = [("x", Pointer), ("out", Pointer), ("rows", Long), ("width", Long), ("kind", Int)]


class Call(ctypes.Structure):
    """struct call"""

    _fields_ = [("function", Pointer), ("asked", Pointer)]
