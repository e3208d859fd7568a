package models_test

import (
	"context"
	"fmt"
	"log"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
)

// Continue two prompts of token ids at once.
func ExampleGenerator_Generate() {
	ctx := context.Background()
	// A tiny model of the tests; a hub id or any folder of a Hugging Face checkpoint would do.
	model, err := models.Load(ctx, "../internal/golden/testdata/families/llama", models.Options{Backend: "go"})
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	generator, err := models.NewGenerator(model)
	if err != nil {
		log.Fatal(err)
	}
	defer generator.Close()
	out, err := generator.Generate(ctx, [][]int32{{20, 31, 3}, {47, 51, 25, 44, 38, 51}}, models.GenerateOptions{MaxNewTokens: 8})
	if err != nil {
		log.Fatal(err)
	}
	for _, row := range out {
		fmt.Println(row.IDs, row.FinishReason)
	}
	// Output:
	// [21 61 61 43 1 2] stop
	// [12 21 51 2] stop
}

// Ask a chat model and print its answer as it comes.
func ExampleModel_Generate() {
	ctx := context.Background()
	model, err := models.Load(ctx, "HuggingFaceTB/SmolLM2-135M-Instruct", models.Options{})
	if err != nil {
		log.Fatal(err)
	}
	defer model.Close()
	messages := []tokenizer.Message{{Role: "user", Content: "What is the capital of France?"}}
	prompt, err := model.Tokenizer.ApplyChatTemplate(messages, tokenizer.ChatOptions{AddGenerationPrompt: true})
	if err != nil {
		log.Fatal(err)
	}
	answer, err := model.Generate(ctx, prompt, models.GenerateOptions{
		PromptIsComplete: true, // the template wrote the special tokens
		MaxNewTokens:     200,
		Temperature:      0.7, TopP: 0.9, Seed: 1,
		Stream: func(_ int, text string) error {
			_, err := fmt.Print(text)
			return err
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(len(answer), "bytes")
}
