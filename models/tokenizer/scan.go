package tokenizer

import "unicode/utf8"

// scanner returns the end of the piece of s that begins at i. It stands for a
// regular expression that matches at every position; running the expression
// itself takes a hundred times as long. Fuzzing compares the two.
type scanner func(s string, i int) int

// The patterns of byte-level BPE, as they stand in tokenizer.json.
const (
	llama3Pattern = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	qwenPattern   = `(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
	cl100kPattern = `'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+`
)

// knownScanner returns nil for a pattern that has none.
func knownScanner(pattern string) scanner {
	switch pattern {
	case gpt2Pattern:
		return scanGPT2
	case llama3Pattern, cl100kPattern:
		return func(s string, i int) int { return scanCL100K(s, i, 3) }
	case qwenPattern:
		return func(s string, i int) int { return scanCL100K(s, i, 1) }
	}
	return nil
}

// asciiClasses is the start of basicPlane.
var asciiClasses = func() (table [utf8.RuneSelf]uint8) {
	for r := range table {
		table[r] = slowClass(rune(r))
	}
	return table
}()

// classAt is the class of the character at i and its length; otherClass and 0
// at the end.
func classAt(s string, i int) (uint8, int) {
	if i >= len(s) {
		return otherClass, 0
	}
	if c := s[i]; c < utf8.RuneSelf {
		return asciiClasses[c], 1
	}
	r, n := utf8.DecodeRuneInString(s[i:])
	if r < 1<<16 {
		return basicPlane()[r], n
	}
	return slowClass(r), n
}

// runOf is the end of the run of characters of one class that begins at i.
func runOf(s string, i int, class uint8) int {
	for i < len(s) {
		c, n := classAt(s, i)
		if c != class {
			break
		}
		i += n
	}
	return i
}

// scanGPT2 is gpt2Pattern.
func scanGPT2(s string, i int) int {
	if s[i] == '\'' {
		if n := contraction(s, i, false); n > 0 {
			return i + n
		}
	}
	start := i
	if s[i] == ' ' {
		start++
	}
	if class, n := classAt(s, start); n > 0 && class != spaceClass {
		return runOf(s, start, class)
	}
	return spaces(s, i, runOf(s, i, spaceClass))
}

// scanCL100K is llama3Pattern with numbers of at most maxDigits characters.
func scanCL100K(s string, i, maxDigits int) int {
	if s[i] == '\'' {
		if n := contraction(s, i, true); n > 0 {
			return i + n
		}
	}
	class, n := classAt(s, i)
	switch class {
	case letterClass:
		return runOf(s, i, letterClass)
	case numberClass:
		for digits := 0; digits < maxDigits && class == numberClass; digits++ {
			i += n
			class, n = classAt(s, i)
		}
		return i
	}
	next, nextLen := classAt(s, i+n)
	if nextLen > 0 && next == letterClass && s[i] != '\r' && s[i] != '\n' {
		return runOf(s, i+n, letterClass)
	}
	if class == otherClass || s[i] == ' ' && nextLen > 0 && next == otherClass {
		end := runOf(s, i+n, otherClass)
		for end < len(s) && (s[end] == '\r' || s[end] == '\n') {
			end++
		}
		return end
	}
	end := runOf(s, i, spaceClass)
	for last := end; last > i; last-- {
		if s[last-1] == '\r' || s[last-1] == '\n' {
			return last
		}
	}
	return spaces(s, i, end)
}

// spaces is \s+(?!\S)|\s+ on a run of blanks: the last is left to the word
// after it, unless it is alone.
func spaces(s string, i, end int) int {
	if end == len(s) {
		return end
	}
	_, n := utf8.DecodeLastRuneInString(s[:end])
	if end-n > i {
		return end - n
	}
	return end
}

// contraction is the length of 's, 't, 're, 've, 'm, 'll or 'd at i, 0 if there
// is none.
func contraction(s string, i int, anyCase bool) int {
	if i+1 >= len(s) {
		return 0
	}
	lower := func(b byte) byte {
		if anyCase && b >= 'A' && b <= 'Z' {
			return b + 'a' - 'A'
		}
		return b
	}
	a := lower(s[i+1])
	switch a {
	case 's', 't', 'm', 'd':
		return 2
	}
	if i+2 >= len(s) {
		return 0
	}
	switch b := lower(s[i+2]); {
	case a == 'r' && b == 'e', a == 'v' && b == 'e', a == 'l' && b == 'l':
		return 3
	case anyCase && s[i+1:i+3] == "ſ": // folds to s
		return 3
	}
	return 0
}
