package main

// person is a character: a name and how pronouns speak of it.
type person struct{ name, he, his, him string }

func girl(name string) person { return person{name, "she", "her", "her"} }
func boy(name string) person  { return person{name, "he", "his", "him"} }

var people = []person{
	girl("Mia"), girl("Lily"), girl("Anna"), girl("Rosa"), girl("Nora"), girl("Ella"), girl("Ada"), girl("Ivy"),
	boy("Ben"), boy("Tom"), boy("Max"), boy("Leo"), boy("Sam"), boy("Finn"), boy("Otto"), boy("Paul"),
}

var things = []string{
	"ball", "kite", "book", "lamp", "key", "hat", "cup", "drum", "boat", "shell", "coin", "rope",
	"bell", "doll", "map", "spoon", "flute", "ring", "scarf", "stone", "mirror", "feather", "candle", "brush",
}

var colours = []string{"red", "blue", "green", "yellow", "white", "black", "brown", "old", "new", "tiny"}

var spots = []string{
	"in the box", "in the basket", "in the bag", "in the drawer", "in the bucket", "in the barrel",
	"under the bed", "under the table", "under the bench", "under the bridge",
	"behind the door", "behind the tree", "behind the wall", "behind the curtain",
	"on the shelf", "on the chair", "on the roof", "on the piano",
	"beside the well", "beside the oven", "beside the gate", "beside the pond",
}

var rooms = []string{
	"garden", "kitchen", "park", "forest", "barn", "school", "attic", "meadow", "harbour", "market", "library", "castle",
}

var animals = []string{"cat", "dog", "duck", "goat", "pony", "fox", "hen", "owl", "mouse", "rabbit"}

var feelings = []string{"happy", "tired", "proud", "curious", "hungry", "glad", "quiet"}
