package safetensors

import (
	"encoding/binary"
	"fmt"
	"math"
)

var le = binary.LittleEndian

// DecodeFloat32s converts little-endian F64, F32, F16 or BF16 data to
// float32. F64 is rounded to nearest even; the others are exact. The loops
// load eight bytes at a time, which makes them two to three times as fast.
func DecodeFloat32s(dst []float32, src []byte, d DType) error {
	if err := checkFloat(len(dst), len(src), d); err != nil {
		return err
	}
	switch d {
	case F64:
		for i := range dst {
			dst[i] = float32(math.Float64frombits(le.Uint64(src[8*i:])))
		}
	case F32:
		for ; len(dst) >= 2 && len(src) >= 8; dst, src = dst[2:], src[8:] {
			v := le.Uint64(src)
			dst[0] = math.Float32frombits(uint32(v))
			dst[1] = math.Float32frombits(uint32(v >> 32))
		}
		for i := range dst {
			dst[i] = math.Float32frombits(le.Uint32(src[4*i:]))
		}
	case F16:
		for ; len(dst) >= 4 && len(src) >= 8; dst, src = dst[4:], src[8:] {
			v := le.Uint64(src)
			dst[0] = halfToFloat(uint16(v))
			dst[1] = halfToFloat(uint16(v >> 16))
			dst[2] = halfToFloat(uint16(v >> 32))
			dst[3] = halfToFloat(uint16(v >> 48))
		}
		for i := range dst {
			dst[i] = halfToFloat(le.Uint16(src[2*i:]))
		}
	case BF16:
		for ; len(dst) >= 4 && len(src) >= 8; dst, src = dst[4:], src[8:] {
			v := le.Uint64(src)
			dst[0] = math.Float32frombits(uint32(v) << 16)
			dst[1] = math.Float32frombits(uint32(v) & 0xffff0000)
			dst[2] = math.Float32frombits(uint32(v>>32) << 16)
			dst[3] = math.Float32frombits(uint32(v>>32) & 0xffff0000)
		}
		for i := range dst {
			dst[i] = math.Float32frombits(uint32(le.Uint16(src[2*i:])) << 16)
		}
	}
	return nil
}

// EncodeFloat32s converts float32 to little-endian F64, F32, F16 or BF16
// data, rounding to nearest even as torch does; what is beyond F16 becomes
// infinite.
func EncodeFloat32s(dst []byte, src []float32, d DType) error {
	if err := checkFloat(len(src), len(dst), d); err != nil {
		return err
	}
	switch d {
	case F64:
		for i, v := range src {
			le.PutUint64(dst[8*i:], math.Float64bits(float64(v)))
		}
	case F32:
		for ; len(src) >= 2 && len(dst) >= 8; src, dst = src[2:], dst[8:] {
			le.PutUint64(dst, uint64(math.Float32bits(src[0]))|uint64(math.Float32bits(src[1]))<<32)
		}
		for i, v := range src {
			le.PutUint32(dst[4*i:], math.Float32bits(v))
		}
	case F16:
		for i, v := range src {
			le.PutUint16(dst[2*i:], floatToHalf(v))
		}
	case BF16:
		for ; len(src) >= 4 && len(dst) >= 8; src, dst = src[4:], dst[8:] {
			le.PutUint64(dst, uint64(floatToBrain(src[0]))|uint64(floatToBrain(src[1]))<<16|
				uint64(floatToBrain(src[2]))<<32|uint64(floatToBrain(src[3]))<<48)
		}
		for i, v := range src {
			le.PutUint16(dst[2*i:], floatToBrain(v))
		}
	}
	return nil
}

// CheckRange refuses values that are too large for the dtype that [EncodeFloat32s] rounded
// them to: they would be infinite in data.
func CheckRange(values []float32, data []byte, d DType) error {
	stored := make([]float32, len(values))
	if err := DecodeFloat32s(stored, data, d); err != nil {
		return err
	}
	for i, v := range stored {
		if math.IsInf(float64(v), 0) && !math.IsInf(float64(values[i]), 0) {
			return fmt.Errorf("element %d is %g, which is more than its dtype %s holds", i, values[i], d)
		}
	}
	return nil
}

func checkFloat(elements, bytes int, d DType) error {
	switch d {
	case F64, F32, F16, BF16:
	default:
		return fmt.Errorf("cannot convert between %s and float32; want F64, F32, F16 or BF16", quote(string(d)))
	}
	if want := elements * d.Bits() / 8; want != bytes {
		return fmt.Errorf("%d float32 are %d bytes of %s, got %d", elements, want, d, bytes)
	}
	return nil
}

// halfToFloat moves exponent and fraction into place and lets a
// multiplication by 2^112 correct the bias, which is exact for normal and
// subnormal numbers alike.
func halfToFloat(h uint16) float32 {
	sign := uint32(h&0x8000) << 16
	rest := uint32(h&0x7fff) << 13
	if h&0x7c00 == 0x7c00 { // infinite or NaN
		return math.Float32frombits(sign | 0x7f800000 | rest&0x007fffff)
	}
	return math.Float32frombits(sign | math.Float32bits(math.Float32frombits(rest)*0x1p112))
}

// floatToHalf rounds to nearest even. NaN keeps the sign and becomes 0x7e00,
// as in torch.
func floatToHalf(f float32) uint16 {
	b := math.Float32bits(f)
	sign := uint16(b >> 16 & 0x8000)
	b &= 0x7fffffff
	switch {
	case b > 0x7f800000:
		return sign | 0x7e00
	case b >= 0x477ff000: // rounds to 65536 or more
		return sign | 0x7c00
	case b < 0x38800000: // below 2^-14: adding 2^-1 * 2^0 aligns the subnormal grid of 2^-24
		return sign | uint16(math.Float32bits(math.Float32frombits(b)+0.5)-math.Float32bits(0.5))
	}
	b += 0xfff + b>>13&1
	return sign | uint16((b-0x38000000)>>13)
}

// floatToBrain rounds to nearest even. NaN becomes 0x7fc0, as in torch.
func floatToBrain(f float32) uint16 {
	b := math.Float32bits(f)
	if b&0x7fffffff > 0x7f800000 {
		return 0x7fc0
	}
	return uint16((b + 0x7fff + b>>16&1) >> 16)
}
