// What the probes of the JavaScript clients share: see probe.py.
export const URL_ = process.env.TRIMTAB_URL
export const KEY = process.env.TRIMTAB_KEY
export const PROMPT = 'Write a review of the cafe.'
export const TOKENS = 24

export async function run(ask) {
  for (const cell of JSON.parse(process.argv[2])) {
    let line
    try {
      const [text, kept] = await ask(cell.model, cell.guidance, cell.stream)
      line = { text, kept: kept ?? null }
    } catch (error) {
      line = { error: String(error) }
    }
    console.log('CELL ' + JSON.stringify({ name: cell.name, ...line }))
  }
}
