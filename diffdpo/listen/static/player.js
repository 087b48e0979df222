// Sounds that run in step: all sources start at once, and switching cross-fades their gains.

const FADE_S = 0.03;
const LEAD_S = 0.03;

export class Player {
  constructor(onChange) {
    this.onChange = onChange;
    this.buffers = [];
    this.clear();
  }

  clear() {
    this.stop();
    this.buffers = [];
    this.current = 0;
    this.offset = 0;
    this.loop = null;
  }

  // The context is made by the first gesture: browsers keep an earlier one silent.
  wake() {
    this.context ??= new AudioContext();
    if (this.context.state === "suspended") this.context.resume();
    return this.context;
  }

  async load(urls) {
    this.clear();
    const context = (this.context ??= new AudioContext());
    const files = await Promise.all(urls.map(async (url) => {
      const answer = await fetch(url, { credentials: "same-origin" });
      if (!answer.ok) throw new Error(`${answer.status}`);
      return answer.arrayBuffer();
    }));
    this.buffers = await Promise.all(files.map((file) => context.decodeAudioData(file)));
    this.onChange();
  }

  get seconds() {
    return this.buffers.length ? Math.min(...this.buffers.map((buffer) => buffer.duration)) : 0;
  }

  get playing() {
    return Boolean(this.voices);
  }

  get region() {
    return this.loop ?? [0, this.seconds];
  }

  get position() {
    if (!this.playing) return this.offset;
    const [start, stop] = this.region;
    const time = this.offset + Math.max(0, this.context.currentTime - this.startTime);
    return time < stop ? time : start + ((time - start) % (stop - start));
  }

  play() {
    if (!this.buffers.length || this.playing) return;
    const context = this.wake();
    const [start, stop] = this.region;
    if (this.offset < start || this.offset >= stop - 0.01) this.offset = start;
    this.startTime = context.currentTime + LEAD_S;
    this.output = new GainNode(context, { gain: 1 });
    this.output.connect(context.destination);
    this.voices = this.buffers.map((buffer, place) => {
      const source = new AudioBufferSourceNode(context, { buffer, loop: true, loopStart: start, loopEnd: stop });
      const gain = new GainNode(context, { gain: place === this.current ? 1 : 0 });
      source.connect(gain).connect(this.output);
      source.start(this.startTime, this.offset);
      return { source, gain };
    });
    this.onChange();
  }

  stop() {
    if (!this.playing) return;
    this.offset = this.position;
    const { voices, output, context } = this;
    this.voices = null;
    output.gain.setTargetAtTime(0, context.currentTime, FADE_S / 4);
    for (const { source } of voices) source.stop(context.currentTime + FADE_S * 2);
    setTimeout(() => output.disconnect(), 1000 * FADE_S * 4);
  }

  pause() {
    this.stop();
    this.onChange();
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  select(place) {
    if (place >= this.buffers.length) return;
    this.current = place;
    const now = this.playing ? this.context.currentTime : 0;
    for (const [k, { gain }] of (this.voices ?? []).entries()) {
      gain.gain.cancelScheduledValues(now);
      gain.gain.setValueAtTime(gain.gain.value, now);
      gain.gain.linearRampToValueAtTime(k === place ? 1 : 0, now + FADE_S);
    }
    this.onChange();
  }

  // Every change of place starts all sounds anew, in step.
  restart(change) {
    const wasPlaying = this.playing;
    this.stop();
    change();
    if (wasPlaying) this.play();
    this.onChange();
  }

  seek(seconds) {
    const [start, stop] = this.region;
    this.restart(() => { this.offset = Math.min(Math.max(seconds, start), Math.max(start, stop - 0.02)); });
  }

  setLoop(start, stop) {
    const length = this.seconds;
    const [low, high] = [Math.max(0, Math.min(start, stop)), Math.min(length, Math.max(start, stop))];
    if (high - low < 0.2) return;
    this.restart(() => { this.loop = low <= 0 && high >= length ? null : [low, high]; });
  }

  clearLoop() {
    this.restart(() => { this.loop = null; });
  }
}

// Steady noise with equal energy in every octave, for setting the volume: about as loud as the songs.
export function pinkNoise(context, seconds = 4, level = 0.07) {
  const buffer = new AudioBuffer({ length: seconds * context.sampleRate, sampleRate: context.sampleRate, numberOfChannels: 2 });
  for (let channel = 0; channel < 2; channel++) {
    const samples = buffer.getChannelData(channel);
    let [a, b, c] = [0, 0, 0], power = 0;
    for (let k = 0; k < samples.length; k++) {
      const white = Math.random() * 2 - 1;
      a = 0.99765 * a + white * 0.099046;
      b = 0.963 * b + white * 0.2965164;
      c = 0.57 * c + white * 1.0526913;
      samples[k] = a + b + c + white * 0.1848;
      power += samples[k] ** 2;
    }
    const factor = level / Math.sqrt(power / samples.length);
    for (let k = 0; k < samples.length; k++) samples[k] *= factor;
  }
  return buffer;
}
