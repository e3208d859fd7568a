package safetensors

import (
	"fmt"
	"math"
	"math/bits"
)

// DType is the element type of a tensor, spelled as in the file. A file may
// hold dtypes that are not listed here: such a tensor has a byte range and
// can be copied, but nothing here can interpret it.
type DType string

// The dtypes of safetensors 0.8. Sub-byte types are packed.
const (
	BOOL       DType = "BOOL"
	F4         DType = "F4"
	F6E2M3     DType = "F6_E2M3"
	F6E3M2     DType = "F6_E3M2"
	U8         DType = "U8"
	I8         DType = "I8"
	F8E5M2     DType = "F8_E5M2"
	F8E4M3     DType = "F8_E4M3"
	F8E8M0     DType = "F8_E8M0"
	F8E4M3FNUZ DType = "F8_E4M3FNUZ"
	F8E5M2FNUZ DType = "F8_E5M2FNUZ"
	I16        DType = "I16"
	U16        DType = "U16"
	F16        DType = "F16"
	BF16       DType = "BF16"
	I32        DType = "I32"
	U32        DType = "U32"
	F32        DType = "F32"
	C64        DType = "C64"
	F64        DType = "F64"
	I64        DType = "I64"
	U64        DType = "U64"
)

// known gives each dtype its rank in the reference implementation's
// enumeration, by which files are laid out (highest first), and its width.
var known = map[DType]struct{ rank, bits int }{
	BOOL: {0, 8}, F4: {1, 4}, F6E2M3: {2, 6}, F6E3M2: {3, 6}, U8: {4, 8}, I8: {5, 8},
	F8E5M2: {6, 8}, F8E4M3: {7, 8}, F8E8M0: {8, 8}, F8E4M3FNUZ: {9, 8}, F8E5M2FNUZ: {10, 8},
	I16: {11, 16}, U16: {12, 16}, F16: {13, 16}, BF16: {14, 16},
	I32: {15, 32}, U32: {16, 32}, F32: {17, 32},
	C64: {18, 64}, F64: {19, 64}, I64: {20, 64}, U64: {21, 64},
}

// Bits returns the width of one element in bits, 0 for an unknown dtype.
func (d DType) Bits() int { return known[d].bits }

// Size returns the bytes that a tensor of this dtype and shape takes. The
// shape [] is a scalar of one element. Errors: an unknown dtype, a negative
// dimension, a size beyond int64, sub-byte elements that do not fill their
// last byte.
func (d DType) Size(shape []int) (int64, error) {
	width := d.Bits()
	if width == 0 {
		return 0, fmt.Errorf("unknown dtype %s", quote(string(d)))
	}
	n := uint64(1)
	for _, dim := range shape {
		if dim < 0 {
			return 0, fmt.Errorf("negative dimension in shape %s", shapeText(shape))
		}
		hi, lo := bits.Mul64(n, uint64(dim))
		if hi != 0 {
			return 0, fmt.Errorf("the number of elements of shape %s overflows 64 bits", shapeText(shape))
		}
		n = lo
	}
	hi, total := bits.Mul64(n, uint64(width))
	if hi != 0 || total/8 > math.MaxInt64 {
		return 0, fmt.Errorf("the size of %s%s overflows 64 bits", d, shapeText(shape))
	}
	if total%8 != 0 {
		return 0, fmt.Errorf("%s%s does not fill whole bytes", d, shapeText(shape))
	}
	return int64(total / 8), nil
}
