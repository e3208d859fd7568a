package train

// Stand-ins until models/tokenizer has its chat types.
type (
	chatMessage struct{ Role, Content string }
	chatOptions struct{ AddGenerationPrompt bool }
)
