// Package prefixtuning holds the methods that put trained virtual tokens before the tokens of
// every row and leave the model's weights alone.
//
//   - [PrefixTuningConfig]: keys and values of virtual tokens for every layer.
//   - [PromptTuningConfig]: their embeddings.
//   - [PromptEncoderConfig] (P-tuning): their embeddings, made by a small network.
//   - [MultitaskPromptTuningConfig]: their embeddings, shared by tasks and scaled for each.
//
// All are peft's methods of the same names, with its configurations and files. Importing the
// package makes [peft.LoadAdapter] know them.
package prefixtuning
