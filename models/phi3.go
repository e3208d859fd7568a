package models

import "slices"

func init() { Register("phi3", newPhi3) }

// newPhi3 reads a Phi-3 or Phi-4: a Llama whose q, k and v are one matrix and whose
// gate and up are one, with rotary embeddings on a part of each head in some members
// (Abdin et al. 2024, arXiv:2404.14219 and 2412.08905). Its options resid_pdrop,
// embd_pdrop and attention_dropout are dropout in training, which a base does not have.
func newPhi3(configJSON []byte) (Architecture, error) {
	f, err := newFields(configJSON)
	if err != nil {
		return nil, err
	}
	m := newDecoder(f, commonConfig(f, configJSON, 4096), 0)
	m.fused = true
	m.act = f.act("hidden_act", "silu")
	m.rope = phi3Rope(f, m.headDim, m.config.MaxPositions)
	m.windows = slices.Repeat([]int{f.sizeOr("sliding_window", 0)}, m.config.NumLayers)
	refuseOptions(f, "partial_rotary_factor")
	if err := f.err(); err != nil {
		return nil, err
	}
	return m, nil
}

// phi3Rope reads rope types default and longrope, which old checkpoints call su or yarn.
func phi3Rope(f *fields, headDim, maxPositions int) *rope {
	o := ropeOptions{theta: f.numberOr("rope_theta", 10000), partial: true, maxPositions: maxPositions,
		original: f.sizeOr("original_max_position_embeddings", 4096),
		aliases:  map[string]string{"su": "longrope", "yarn": "longrope"}}
	partial := f.numberOr("partial_rotary_factor", 1)
	r := ropeObject(f)
	if r != nil {
		partial = r.numberOr("partial_rotary_factor", partial)
		if kind := r.textOr("rope_type", r.textOr("type", "default")); !slices.Contains([]string{"default", "longrope", "su", "yarn"}, kind) {
			r.fail("rope_type %q is not supported; phi3 has default and longrope", kind)
			return nil
		}
	}
	o.dims = int(float64(headDim) * partial)
	if partial > 1 || o.dims < 2 || o.dims%2 != 0 {
		f.fail("partial_rotary_factor %g of head_dim %d: wanted an even number of features, at least 2 and at most head_dim, got %d", partial, headDim, o.dims)
		return nil
	}
	return readRope(f, r, o)
}
