import OpenAI from 'openai'
import { KEY, PROMPT, TOKENS, URL_, run } from './probe.mjs'

const client = new OpenAI({ baseURL: `${URL_}/v1`, apiKey: KEY })

await run(async (model, guidance, stream) => {
  const messages = [{ role: 'user', content: PROMPT }]
  const request = { model, messages, temperature: 0, max_tokens: TOKENS, stream }
  if (guidance) request.guidance = guidance
  const answer = await client.chat.completions.create(request)
  if (!stream) return [answer.choices[0].message.content, answer.choices[0].guidance]
  let text = ''
  let kept
  for await (const event of answer) {
    for (const choice of event.choices) {
      text += choice.delta.content ?? ''
      kept = choice.guidance ?? kept
    }
  }
  return [text, kept]
})
