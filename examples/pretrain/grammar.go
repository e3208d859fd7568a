package main

import (
	"math/rand/v2"
	"strings"
)

// item is a thing that someone in a story has put somewhere.
type item struct {
	owner               person
	thing, colour, spot string
}

// The sentences of a story. In braces: {1} and {2} the first two people, {room},
// {animal}, {feeling}; of an item {o} its owner, {He}, {he}, {his} the owner's
// pronouns, {t} the thing, {c} its colour, {a} the thing with colour and article,
// {p} where it is; {s} is somebody else who speaks.
var (
	openings = []string{
		"One morning {1} and {2} were in the {room}.", "One day {1} met {2} in the {room}.",
		"It was a warm day, and {1} and {2} went to the {room}.", "It was cold in the {room}, but {1} and {2} did not mind.",
		"Long ago {1} and {2} lived near the {room}.", "After school {1} and {2} ran to the {room}.",
		"The sun shone on the {room}. {1} and {2} were very {feeling}.",
	}
	placings = []string{
		"{o} had {a}. {He} put the {t} {p}.", "{o} found {a} and put it {p}.", "{o} hid {his} {c} {t} {p}.",
		"{o} left the {c} {t} {p}.", "{o} came with {a}. {He} laid it {p}.", "{o} took {a} and hid it {p}.",
		"Then {o} put {a} {p}.", "There was {a} {p}. It was the {t} of {o}.",
	}
	fillers = []string{
		"The {animal} slept all day.", "A {animal} ran through the {room}.", "They sang a song and played for an hour.",
		"Soon it began to rain.", "The wind was strong.", "{1} was {feeling}, and {2} was {feeling} too.",
		"{1} told {2} a story about a {animal}.", "{2} gave the {animal} some bread.", "They looked at the clouds for a while.",
		"\"I am {feeling},\" said {1}.", "\"Look at the {animal}!\" said {2}.",
	}
	recalls = []string{
		"Later {o} wanted the {t}. {He} looked {p} and found it.", "\"Where is the {t}?\" asked {s}. \"It is {p},\" said {o}.",
		"\"Where did you put the {t}?\" asked {s}. \"I put it {p},\" said {o}.", "{s} looked {p} and saw the {c} {t}.",
		"\"Who has the {t}?\" asked the {animal}. \"It belongs to {o},\" said {s}.", "\"What is {p}?\" asked {s}. \"It is the {c} {t},\" said {o}.",
		"\"What colour is the {t}?\" asked {s}. \"The {t} is {c},\" said {o}.", "The {t} was still {p}, and {o} was {feeling}.",
		"{o} went back to get the {t} that was {p}.", "The {animal} took the {t} of {o}. It was not {p} any more.",
		"\"Who put the {t} {p}?\" asked {s}. \"{o} did,\" said the {animal}.", "\"The thing {p} is mine,\" said {o}. \"It is the {t}.\"",
	}
	closings = []string{
		"In the evening they all went home.", "{1} and {2} were {feeling} and went to sleep.", "It was a good day.",
		"\"See you tomorrow,\" said {2}.", "Then the moon rose over the {room}.", "\"What a day!\" said {1}.",
	}
)

// story makes one story. Who owns what, and where it is, is drawn anew each time, so
// that the second half can only be guessed by reading the first.
func story(r *rand.Rand) string {
	cast := sample(r, people, 2+r.IntN(2))
	stuff, where := sample(r, things, 3), sample(r, spots, 3)
	items := make([]item, 2+r.IntN(2))
	for i := range items {
		items[i] = item{owner: cast[i%len(cast)], thing: stuff[i], colour: pick(r, colours), spot: where[i]}
	}
	scene := []string{"{1}", cast[0].name, "{2}", cast[1].name, "{room}", pick(r, rooms)}

	sentences := []string{fill(r, pick(r, openings), scene)}
	for _, it := range items {
		sentences = append(sentences, fill(r, pick(r, placings), scene, it.words(r, cast)))
		if r.IntN(3) == 0 {
			sentences = append(sentences, fill(r, pick(r, fillers), scene))
		}
	}
	for range 3 {
		sentences = append(sentences, fill(r, pick(r, recalls), scene, pick(r, items).words(r, cast)))
	}
	return strings.Join(append(sentences, fill(r, pick(r, closings), scene)), " ")
}

// words are what an item puts into a sentence.
func (it item) words(r *rand.Rand, cast []person) []string {
	speaker := pick(r, cast)
	for speaker == it.owner {
		speaker = pick(r, cast)
	}
	article := "a "
	if strings.ContainsRune("aeiou", rune(it.colour[0])) {
		article = "an "
	}
	he := it.owner.he
	return []string{
		"{o}", it.owner.name, "{he}", he, "{He}", strings.ToUpper(he[:1]) + he[1:], "{his}", it.owner.his,
		"{t}", it.thing, "{c}", it.colour, "{a}", article + it.colour + " " + it.thing, "{p}", it.spot, "{s}", speaker.name,
	}
}

// fill replaces what is in braces.
func fill(r *rand.Rand, sentence string, words ...[]string) string {
	all := []string{"{animal}", pick(r, animals), "{feeling}", pick(r, feelings)}
	for _, w := range words {
		all = append(all, w...)
	}
	return strings.NewReplacer(all...).Replace(sentence)
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// sample draws n different ones.
func sample[T any](r *rand.Rand, from []T, n int) []T {
	out := make([]T, n)
	for i, k := range r.Perm(len(from))[:n] {
		out[i] = from[k]
	}
	return out
}

// stories makes n stories. Equal seeds give equal stories.
func stories(seed uint64, n int) []string {
	r := rand.New(rand.NewPCG(seed, 0))
	out := make([]string, n)
	for i := range out {
		out[i] = story(r)
	}
	return out
}
