package tokenizer

import "strings"

const (
	maxCachedWord  = 64      // bytes; longer pieces rarely come twice
	maxCachedWords = 1 << 15 // then the cache starts anew
)

// worker is the scratch space of one Encode call. It is pooled: the word cache
// lives on, which changes the speed and never the ids.
type worker struct {
	out   []int32
	chain pieceFunc // pre-tokenizers, then the model
	cache map[string][]int32
	arena []int32 // backing of the cached ids
	bpe   bpeScratch
	nodes []pathNode // Unigram's best paths
	stack []int32
}

// pieceFunc receives a piece of text. first says that the piece begins the
// whole text, which Metaspace's prepend_scheme "first" asks for.
type pieceFunc func(s string, first bool)

func (t *Tokenizer) worker() *worker {
	if w, ok := t.workers.Get().(*worker); ok {
		return w
	}
	w := &worker{cache: map[string][]int32{}}
	w.chain = func(piece string, _ bool) { w.encodeWord(t.model, piece) }
	for i := len(t.pre) - 1; i >= 0; i-- {
		pre, next := t.pre[i], w.chain
		w.chain = func(s string, first bool) { pre.split(s, first, next) }
	}
	return w
}

// encodeWord appends the ids of one piece to w.out, from the cache if it is there.
func (w *worker) encodeWord(m model, piece string) {
	if piece == "" {
		return
	}
	if len(piece) > maxCachedWord {
		w.out = m.appendIDs(w.out, piece, w)
		return
	}
	if ids, ok := w.cache[piece]; ok {
		w.out = append(w.out, ids...)
		return
	}
	n := len(w.out)
	w.out = m.appendIDs(w.out, piece, w)
	w.remember(piece, w.out[n:])
}

func (w *worker) remember(piece string, ids []int32) {
	if len(w.cache) >= maxCachedWords {
		clear(w.cache)
	}
	if cap(w.arena)-len(w.arena) < len(ids) {
		w.arena = make([]int32, 0, 1<<13)
	}
	n := len(w.arena)
	w.arena = append(w.arena, ids...)
	// The key is a copy: a substring would keep the caller's whole text alive.
	w.cache[strings.Clone(piece)] = w.arena[n:len(w.arena):len(w.arena)]
}
