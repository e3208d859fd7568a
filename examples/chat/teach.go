package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/gopeft/gopeft/models"
	"github.com/gopeft/gopeft/models/tokenizer"
	"github.com/gopeft/gopeft/peft"
	"github.com/gopeft/gopeft/site"
	"github.com/gopeft/gopeft/train"
)

// teachAll makes the folder of adapters that the program has in it.
func (o options) teachAll(ctx context.Context, model *models.Model, c console) error {
	for _, s := range styles {
		pm, err := o.teach(ctx, model, s, c.progress)
		if err != nil {
			return fmt.Errorf("adapter %s: %w", s.name, err)
		}
		if err := pm.SavePretrained(o.teachTo); err != nil {
			return err
		}
		right, all, err := s.examine(ctx, model, pm)
		if err != nil {
			return err
		}
		fmt.Fprintf(c.out, "%s: %d of %d answers about people in no chat are right\n", filepath.Join(o.teachTo, s.name), right, all)
	}
	return nil
}

// teach trains an adapter on chats in a style.
func (o options) teach(ctx context.Context, model *models.Model, s style, progress io.Writer) (*peft.PeftModel, error) {
	work, err := os.MkdirTemp("", "gopeft-chat")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(work)
	file := filepath.Join(work, "chats.jsonl")
	if err := writeChats(file, s.chats(1, true)); err != nil {
		return nil, err
	}
	data, err := train.LoadJSONL(file, model.Tokenizer, train.DataOptions{MaxLength: model.MaxPositions(), Buckets: []int{96, 128, 256}})
	if err != nil {
		return nil, err
	}
	common := peft.PeftConfig{TaskType: "CAUSAL_LM", BaseModelNameOrPath: "examples/quickstart/base"} // where Python finds it
	pm, err := peft.GetPeftModel(model, s.config.WithCommon(common), peft.Options{Name: s.name, Seed: 1})
	if err != nil {
		return nil, err
	}
	trainer, err := train.NewTrainer(pm, data, train.Arguments{
		OutputDir: filepath.Join(work, "run"), MaxSteps: o.steps, PerDeviceTrainBatchSize: 8, LearningRate: 5e-3, WarmupRatio: 0.05,
		Seed: 1, SaveStrategy: train.SaveNo, Progress: progress,
	})
	if err != nil {
		return nil, err
	}
	defer trainer.Close()
	if _, err := trainer.Train(ctx); err != nil {
		return nil, err
	}
	return pm, nil
}

// examine asks about the people in no chat, and counts the right answers. Each question
// follows the right answers to those before it.
func (s style) examine(ctx context.Context, model *models.Model, view site.View) (right, all int, err error) {
	generator, err := models.NewGenerator(view)
	if err != nil {
		return 0, 0, err
	}
	defer generator.Close()
	chats := s.chats(2, false)
	for turn := 0; turn < len(chats[0]); turn += 2 {
		prompts := make([]string, len(chats))
		for i, chat := range chats {
			var messages []tokenizer.Message
			for _, m := range chat[:turn+1] {
				messages = append(messages, tokenizer.Message{Role: m.Role, Content: m.Content})
			}
			prompts[i], err = model.Tokenizer.ApplyChatTemplate(messages, tokenizer.ChatOptions{AddGenerationPrompt: true})
			if err != nil {
				return 0, 0, err
			}
		}
		answers, err := generator.GenerateText(ctx, prompts, models.GenerateOptions{MaxNewTokens: 24, PromptIsComplete: true})
		if err != nil {
			return 0, 0, err
		}
		for i, answer := range answers {
			all++
			if strings.TrimSpace(answer.Text) == chats[i][turn+1].Content {
				right++
			}
		}
	}
	return right, all, nil
}

func writeChats(path string, chats [][]message) error {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	encoder := json.NewEncoder(file)
	for _, chat := range chats {
		err = errors.Join(err, encoder.Encode(map[string][]message{"messages": chat}))
	}
	return errors.Join(err, file.Close())
}
