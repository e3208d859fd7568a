package main

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
)

// words cuts text as the byte-level pre-tokenizer of GPT-2 does, near enough to
// count words: a token never spans two of them.
var wordPattern = regexp.MustCompile(`'(?:s|t|re|ve|m|ll|d)| ?\pL+| ?\pN+| ?[^\s\pL\pN]+|\s+`)

type pair struct{ left, right string }

// learnMerges is byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909) on
// bytes: each round joins the pair of neighbours that is most frequent, the
// alphabetically first of equals. Tokens are written in the alphabet of [byteRune].
func learnMerges(texts []string, rounds int) []pair {
	counts := map[string]int{}
	for _, text := range texts {
		for _, word := range wordPattern.FindAllString(text, -1) {
			counts[word]++
		}
	}
	words := make(map[string][]string, len(counts)) // each word as its present tokens
	for word := range counts {
		for _, b := range []byte(word) {
			words[word] = append(words[word], string(byteRune(b)))
		}
	}
	var merges []pair
	for range rounds {
		best, ok := mostFrequent(words, counts)
		if !ok {
			break
		}
		merges = append(merges, best)
		for word, tokens := range words {
			words[word] = join(tokens, best)
		}
	}
	return merges
}

func mostFrequent(words map[string][]string, counts map[string]int) (pair, bool) {
	pairs := map[pair]int{}
	for word, tokens := range words {
		for i := 1; i < len(tokens); i++ {
			pairs[pair{tokens[i-1], tokens[i]}] += counts[word]
		}
	}
	var best pair
	for p, n := range pairs {
		if c := cmp.Compare(n, pairs[best]); c > 0 || c == 0 && p.before(best) {
			best = p
		}
	}
	return best, len(pairs) > 0
}

func (p pair) before(q pair) bool {
	return cmp.Or(strings.Compare(p.left, q.left), strings.Compare(p.right, q.right)) < 0
}

// join replaces every occurrence of p, from left to right, by one token.
func join(tokens []string, p pair) []string {
	for i := 0; i+1 < len(tokens); i++ {
		if tokens[i] == p.left && tokens[i+1] == p.right {
			tokens[i] += tokens[i+1]
			tokens = slices.Delete(tokens, i+1, i+2)
		}
	}
	return tokens
}

// byteRune is GPT-2's way to write a byte as a visible character: printable ones
// stand for themselves, the others for the characters from U+0100 on, in order, so
// that a blank is "Ġ".
func byteRune(b byte) rune {
	shifted := rune(0x100)
	for c := range 256 {
		printable := c >= '!' && c <= '~' || c >= 0xA1 && c <= 0xAC || c >= 0xAE
		if c == int(b) {
			if printable {
				return rune(c)
			}
			return shifted
		}
		if !printable {
			shifted++
		}
	}
	panic("unreachable: a byte is below 256")
}
