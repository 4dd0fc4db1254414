import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { generateText, streamText } from 'ai'
import { KEY, PROMPT, TOKENS, URL_, run } from './probe.mjs'

const trimtab = createOpenAICompatible({
  name: 'trimtab',
  baseURL: `${URL_}/v1`,
  apiKey: KEY,
  includeUsage: true,
})

await run(async (model, guidance, stream) => {
  const request = {
    model: trimtab(model),
    prompt: PROMPT,
    temperature: 0,
    maxOutputTokens: TOKENS,
    providerOptions: guidance ? { trimtab: { guidance } } : {},
  }
  if (!stream) {
    const answer = await generateText(request)
    return [answer.text, answer.usage.raw?.guidance]
  }
  const answer = streamText(request)
  let text = ''
  for await (const piece of answer.textStream) text += piece
  return [text, (await answer.usage).raw?.guidance]
})
