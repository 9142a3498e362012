"""What the C functions are asked, field by field as the C files declare it."""

import ctypes
from typing import ClassVar

Pointer, Long, Int, Float = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32, ctypes.c_float


class Asked(ctypes.Structure):
    """All that `function` needs to know; `grows` is the field that grows with the rows of a pass."""

    function: ClassVar[str]
    grows: ClassVar[str | None] = "rows"


class Product(Asked):
    """struct product"""

    function = "product"
    _fields_ = [
        *((name, Pointer) for name in ("x", "weight", "bias", "out", "scales")),
        *((name, Long) for name in ("rows", "x_stride", "outs", "width")),
        *((name, Int) for name in ("kind", "weight_kind")),
    ]


class PackedWeight(ctypes.Structure):
    """struct packed_weight"""

    _fields_ = [*((name, Pointer) for name in ("data", "bias", "scales", "out")), ("outs", Long), ("out_stride", Long)]


class PackedProduct(Asked):
    """struct packed"""

    function = "packed_product"
    _fields_ = [
        *((name, Pointer) for name in ("x", "weights")),
        *((name, Long) for name in ("count", "rows", "x_stride", "width")),
        *((name, Int) for name in ("kind", "weight_kind", "activation")),
    ]


class Lora(Asked):
    """struct lora"""

    function = "add_lora"
    _fields_ = [
        *((name, Pointer) for name in ("x", "down", "up", "out", "slots")),
        *((name, Long) for name in ("rows", "x_stride", "width", "outs", "num_slots", "rank")),
        ("kind", Int),
    ]


class Attending(Asked):
    """struct attention; where its sequences start says how many rows there are"""

    function, grows = "attention", None
    _fields_ = [
        *((name, Pointer) for name in ("q", "k", "v", "out", "row_starts", "num_keys", "table", "key_starts", "bias")),
        *((name, Long) for name in ("sequences", "heads", "kv_heads", "head_dim", "q_stride", "kv_stride")),
        *((name, Long) for name in ("table_stride", "page_size", "window", "bias_offset", "bias_stride")),
        ("scale", Float),
        *((name, Int) for name in ("kind", "page_kind", "is_causal")),
    ]


class RmsNorm(Asked):
    """struct rms_norm"""

    function = "rms_norm"
    _fields_ = [
        *((name, Pointer) for name in ("x", "other", "weight", "sum", "out")),
        *((name, Long) for name in ("rows", "x_stride", "width")),
        *(("eps", Float), ("kind", Int)),
    ]


class LayerNorm(Asked):
    """struct layer_norm"""

    function = "layer_norm"
    _fields_ = [
        *((name, Pointer) for name in ("x", "y", "weight", "bias", "out")),
        *((name, Long) for name in ("rows", "width", "y_stride")),
        *(("eps", Float), ("kind", Int)),
    ]


class Sum(Asked):
    """struct sum"""

    function, grows = "add", "count"
    _fields_ = [*((name, Pointer) for name in ("x", "y", "out")), ("count", Long), ("kind", Int)]


class Scaling(Asked):
    """struct scaling"""

    function, grows = "scale", "count"
    _fields_ = [("x", Pointer), ("out", Pointer), ("count", Long), ("factor", Float), ("kind", Int)]


class Angles(Asked):
    """struct angles"""

    function = "angles"
    _fields_ = [
        *((name, Pointer) for name in ("positions", "frequencies", "cosines", "sines")),
        *(("rows", Long), ("half", Long), ("factor", Float)),
    ]


class Rotary(Asked):
    """struct rotary"""

    function = "rotary"
    _fields_ = [
        *((name, Pointer) for name in ("x", "out", "cosines", "sines")),
        *((name, Long) for name in ("rows", "x_stride", "heads", "width", "half", "run")),
        ("kind", Int),
    ]


class Turning(Asked):
    """struct turning"""

    function = "rotary_page_write"
    _fields_ = [
        *((name, Pointer) for name in ("q", "k", "v", "out", "k_pages", "v_pages", "cosines", "sines", "slots")),
        *((name, Long) for name in ("rows", "heads", "kv_heads", "width", "half", "run")),
        *((name, Long) for name in ("q_stride", "k_stride", "v_stride")),
        *((name, Int) for name in ("kind", "page_kind")),
    ]


class Gating(Asked):
    """struct gating"""

    function = "gate"
    _fields_ = [
        *((name, Pointer) for name in ("gate", "up", "out")),
        *((name, Long) for name in ("rows", "width", "gate_stride", "up_stride")),
        *((name, Int) for name in ("kind", "activation")),
    ]


class PageWrite(Asked):
    """struct page_write"""

    function, grows = "page_write", "count"
    _fields_ = [
        *((name, Pointer) for name in ("rows", "pages", "slots")),
        *((name, Long) for name in ("count", "row_stride", "width")),
        *((name, Int) for name in ("kind", "page_kind")),
    ]


class PageCopy(Asked):
    """struct page_copy"""

    function, grows = "page_copy", None
    _fields_ = [*((name, Pointer) for name in ("pages", "sources", "targets")), ("count", Long), ("bytes", Long)]


class Lookup(Asked):
    """struct lookup"""

    function, grows = "lookup", "count"
    _fields_ = [
        *((name, Pointer) for name in ("ids", "table", "out")),
        *((name, Long) for name in ("count", "length", "bytes")),
    ]


class Argmax(Asked):
    """struct argmax"""

    function = "argmax"
    _fields_ = [("x", Pointer), ("out", Pointer), ("rows", Long), ("width", Long), ("kind", Int)]


class Likeliest(Asked):
    """struct likeliest"""

    function = "likeliest"
    _fields_ = [
        *((name, Pointer) for name in ("x", "never", "logprobs", "ids")),
        *((name, Long) for name in ("rows", "width", "num_never", "count")),
        ("kind", Int),
    ]


class Call(ctypes.Structure):
    """struct call"""

    _fields_ = [("function", Pointer), ("asked", Pointer)]
