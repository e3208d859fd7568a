package tokenizer_test

import (
	"fmt"
	"log"

	"github.com/gopeft/gopeft/models/tokenizer"
)

func Example() {
	tok, err := tokenizer.Load("testdata/tiny/bytelevel") // a Hugging Face model folder
	if err != nil {
		log.Fatal(err)
	}
	ids := tok.Encode("the cat watches the red kettle", tokenizer.EncodeOptions{AddSpecialTokens: true})
	fmt.Println(len(ids), tok.Decode(ids, tokenizer.DecodeOptions{}))
	fmt.Println(tok.Decode(ids, tokenizer.DecodeOptions{SkipSpecialTokens: true}))
	// Output:
	// 7 <|begin|>the cat watches the red kettle
	// the cat watches the red kettle
}

func ExampleTokenizer_EncodePair() {
	tok, err := tokenizer.Load("testdata/tiny/wordpiece")
	if err != nil {
		log.Fatal(err)
	}
	e := tok.EncodePair("the cat", "a dog", tokenizer.EncodeOptions{AddSpecialTokens: true})
	for i, id := range e.IDs {
		token, _ := tok.Token(id)
		fmt.Print(token, "/", e.TypeIDs[i], " ")
	}
	// Output: [CLS]/0 the/0 cat/0 [SEP]/0 a/1 dog/1 [SEP]/1
}

func ExampleTokenizer_NewStream() {
	tok, err := tokenizer.Load("testdata/tiny/spbpe")
	if err != nil {
		log.Fatal(err)
	}
	stream := tok.NewStream(tokenizer.DecodeOptions{SkipSpecialTokens: true})
	for _, id := range tok.Encode("the cat 猫", tokenizer.EncodeOptions{AddSpecialTokens: true}) {
		fmt.Printf("%q ", stream.Add(id))
	}
	fmt.Printf("%q\n", stream.Flush())
	// Output: "" "the" " c" "at" " " "" "" "" "猫"
}

func ExampleTokenizer_ApplyChatTemplate() {
	tok, err := tokenizer.Load("testdata/tiny/bytelevel")
	if err != nil {
		log.Fatal(err)
	}
	text, err := tok.ApplyChatTemplate([]tokenizer.Message{
		{Role: "system", Content: "Answer briefly."},
		{Role: "user", Content: "How many legs has a spider?"},
	}, tokenizer.ChatOptions{AddGenerationPrompt: true})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Print(text)
	// Output:
	// <|begin|><|im_start|>system
	// Answer briefly.<|im_end|>
	// <|im_start|>user#1
	// How many legs has a spider?<|im_end|>
	// <|im_start|>assistant
}
