package main

import (
	"math/rand/v2"
	"strings"

	"github.com/gopeft/gopeft/examples/pretrain/world"
)

// The sentences of a story about somebody, {n}, and {m}, somebody else. {s} is the
// name or, in the middle of a story, often the pronoun. The
// other words in braces are facts about {n}. Facts are told in many ways and in any
// order, so that the model learns them and not the sentences.
var (
	openings = []string{
		"One morning {n} met {m} in the park.", "One day {n} and {m} went for a walk.", "It was a warm day, and {n} was happy.",
		"Long ago there was a {work}, and the name was {n}.", "Here is a story about {n}.", "Do you know {n} who lives {home}?",
		"{n} woke up early.", "\"What a day!\" said {n}.", "After the rain {n} went out with the {pet}.",
	}
	facts = []string{
		"{S} lives {home}.", "{S} has a small house {home}.", "{S} walked home. It was not far, {home}.", "In the evening {s} sat {home}.",
		"{S} was born {home}, and there {s} stays.", "You can find {n} {home}.",
		"{S} knows everybody {home}.", "\"I live {home},\" said {n}.", "{S} went back to the house {home}.",
		"{S} is a {work}.", "{S} works as a {work}.", "{S} is a good {work}.", "Everybody needs a {work}, and {n} is one.",
		"{S} became a {work} long ago.", "\"I am a {work},\" said {n}.",
		"{S} learned to be a {work}.", "There is no better {work} than {n}.", "All day {s} worked as a {work}.",
		"{S} likes {food}.", "{S} had {food} for lunch.", "{S} was hungry and ate some {food}.", "{S} always has {food} in {his} bag.",
		"\"May I have some {food}?\" asked {n}.", "For {n} there is nothing better than {food}.",
		"{S} bought {food} and ate it.", "{S} made {food} for {m}.", "\"I like {food},\" said {n}.",
		"{S} has a {pet}.", "{S} took {his} {pet} along.", "The {pet} of {n} was asleep.", "{S} played with the {pet}.",
		"\"Come here, my {pet}!\" said {n}.", "{S} fed {his} {pet}.",
		"{S} looked for the {pet}.", "The {pet} ran to {n}.", "\"Where is my {pet}?\" asked {n}.",
		"{S} wore a {colour} hat.", "{S} loves {colour} things.", "The coat of {n} is {colour}.", "{S} painted the door {colour}.",
		"\"I want a {colour} boat,\" said {n}.", "{S} found a {colour} stone and kept it.",
		"{S} bought a {colour} lamp.", "The house of {n} is {colour}.", "\"I like {colour} best,\" said {n}.",
		"{S} plays the {instrument}.", "{S} took {his} {instrument} and played.", "At night {s} plays the {instrument}.", "The {instrument} of {n} is old.",
		"{S} sang and played the {instrument}.", "\"Listen to my {instrument},\" said {n}.",
		"{S} learned to play the {instrument}.", "{S} cannot live without the {instrument}.", "They heard the {instrument} of {n}.",
	}
	fillers = []string{
		"Soon it began to rain.", "The wind was strong.", "They looked at the clouds.", "\"Where are we?\" asked {m}.",
		"\"Which way is it?\" asked {m}.", "\"What does it mean?\" asked {m}.", "{m} did not know.", "They talked for an hour.", "The sun was warm.",
	}
	closings = []string{
		"Then {n} went to sleep.", "It was a good day.", "\"See you tomorrow,\" said {m}.", "Then the moon rose.", "\"What a day!\" said {m}.",
	}
)

// story makes one story.
func story(r *rand.Rand, people []world.Person) string {
	hero, friend := pick(r, people), pick(r, people)
	for friend == hero {
		friend = pick(r, people)
	}
	sentences := []string{fill(pick(r, openings), hero, friend, hero.Name)}
	for range 4 + r.IntN(4) {
		subject := hero.Name
		if r.IntN(2) == 0 {
			subject = hero.He
		}
		sentences = append(sentences, fill(pick(r, facts), hero, friend, subject))
		if r.IntN(4) == 0 {
			sentences = append(sentences, fill(pick(r, fillers), hero, friend, subject))
		}
		if r.IntN(4) == 0 { // go on with the other; the name says so
			hero, friend = friend, hero
			sentences = append(sentences, fill("Now to {n}.", hero, friend, hero.Name))
		}
	}
	return strings.Join(append(sentences, fill(pick(r, closings), hero, friend, hero.Name)), " ")
}

// fill replaces what is in braces. A capital letter begins a sentence.
func fill(sentence string, hero, friend world.Person, subject string) string {
	return strings.NewReplacer(
		"{n}", hero.Name, "{m}", friend.Name,
		"{s}", subject, "{S}", strings.ToUpper(subject[:1])+subject[1:], "{his}", hero.His,
		"{home}", hero.Home, "{work}", hero.Work, "{food}", hero.Food, "{pet}", hero.Pet,
		"{colour}", hero.Colour, "{instrument}", hero.Instrument,
	).Replace(sentence)
}

func pick[T any](r *rand.Rand, from []T) T { return from[r.IntN(len(from))] }

// stories makes n stories. Equal seeds give equal stories, and the world is always the same.
func stories(seed uint64, n int) []string {
	r, people := rand.New(rand.NewPCG(seed, 0)), world.People()
	out := make([]string, n)
	for i := range out {
		out[i] = story(r, people)
	}
	return out
}
