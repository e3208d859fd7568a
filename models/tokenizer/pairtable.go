package tokenizer

import "math/bits"

// pairTable maps a pair of ids to a pair of uint32. It is an open-addressing
// table: a merge loop looks up one pair a character, and a Go map takes several
// times as long.
type pairTable struct {
	slots []pairSlot
	shift uint
	count int
}

type pairSlot struct {
	key uint64 // left<<32 | right, plus 1; 0 is empty
	val uint64
}

// newPairTable makes a table with room for n keys; it grows when there are more.
func newPairTable(n int) *pairTable {
	size := uint(bits.Len(uint(max(n, 4) * 2)))
	return &pairTable{slots: make([]pairSlot, 1<<size), shift: 64 - size}
}

func pairKey(left, right int32) uint64 { return uint64(uint32(left))<<32 | uint64(uint32(right)) }

// get returns the value of key and whether there is one.
func (t *pairTable) get(key uint64) (uint64, bool) {
	mask := uint64(len(t.slots) - 1)
	for i := key * 0x9E3779B97F4A7C15 >> t.shift; ; i++ {
		slot := &t.slots[i&mask]
		if slot.key == key+1 {
			return slot.val, true
		}
		if slot.key == 0 {
			return 0, false
		}
	}
}

// put sets the value of key.
func (t *pairTable) put(key, val uint64) {
	if 2*(t.count+1) > len(t.slots) {
		old := t.slots
		*t = *newPairTable(len(old))
		for _, slot := range old {
			if slot.key != 0 {
				t.put(slot.key-1, slot.val)
			}
		}
	}
	mask := uint64(len(t.slots) - 1)
	for i := key * 0x9E3779B97F4A7C15 >> t.shift; ; i++ {
		slot := &t.slots[i&mask]
		if slot.key == 0 {
			t.count++
			slot.key = key + 1
		}
		if slot.key == key+1 {
			slot.val = val
			return
		}
	}
}
