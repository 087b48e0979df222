// What the page says, by language. {name} stands for a value.

const en = {
  title: "Listening test", consentTitle: "Before you begin", agree: "I agree, continue",
  backgroundTitle: "About you", backgroundLead: "Both are voluntary: leave empty what you would rather not say.",
  yourLanguage: "First language", yourMusic: "Your experience with music", noAnswer: "No answer",
  musicNone: "I rarely listen to music", musicListener: "I listen to music", musicAmateur: "I make music for pleasure",
  musicTrained: "I had years of training", musicProfessional: "I make music for a living", next: "Next",
  volumeTitle: "Set your volume", volumeLead: "Put on headphones if you have some. Play the noise, set the volume so that it is comfortable, and leave it there until the end.",
  playNoise: "Play noise", headphonesTitle: "Check your headphones",
  headphonesLead: "You will hear three noises. One of them has a faint tone in it, which can be heard with headphones only. Which one?",
  playSounds: "Play", skipCheck: "I have no headphones", item: "{number} of {of}", practiceItem: "Practice {number} of {of}",
  practice: "Practice", lyrics: "Lyrics", loopStart: "Loop start", loopEnd: "Loop end", loopClear: "No loop",
  mark: "Mark bad moment", markEnd: "End of bad moment", comment: "Add a comment", skip: "Skip", report: "Report",
  reportWhy: "What is wrong with it? (harmful, broken, copied …)", reportSend: "Report and go on",
  seek: "Position", play: "Play", pause: "Pause", sound: "Song {name}", referenceShort: "Ref", heardAll: "heard",
  whichBetter: "Which do you prefer?", answer_a: "A", answer_b: "B", answer_tie: "No difference", answer_both_bad: "Both are bad", short_tie: "Same", short_both_bad: "Both bad",
  howMuch: "How much better?", strength1: "Slightly", strength2: "Clearly", strength3: "Much",
  thumbQuestion: "Do you like it?", thumbUp: "Yes", thumbDown: "No", starsQuestion: "How good is it?", stars: "{number} of 5",
  valuesQuestion: "How close is each to the reference?", bad: "bad", poor: "poor", fair: "fair", good: "good", excellent: "excellent",
  listenFirst: "Please listen to each song for {seconds} seconds first.", chooseFirst: "Please choose an answer first.",
  right: "Right!", wrong: "Not this time", thanks: "Good",
  answerWas_a: "A was the undamaged song.", answerWas_b: "B was the undamaged song.", answerWas_tie: "Both were the same song.",
  hiddenWas: "The hidden reference was {name}; low-passed copies of it were {anchors}.", practiceOnly: "That was for practice; it does not count.",
  breakTitle: "Time for a break", breakLead: "Ears get tired. Stretch, drink something, and come back.", goOn: "Go on",
  doneTitle: "That was all. Thank you!", doneLead: "Your answers are stored. You can close this page, or look at what is stored of you below.",
  myData: "My data", dataTitle: "My data", dataLead: "Download everything that is stored of you, or delete it. Deleting takes your answers out of the study and cannot be undone.",
  download: "Download", delete: "Delete", deleteConfirm: "Really delete everything", back: "Back",
  deletedTitle: "Everything of yours is deleted.", deletedLead: "Nothing but a random number and the time is left. You can close this page.",
  failureTitle: "Something went wrong", again: "Try again", offline: "The server does not answer. Your answers so far are stored.",
  keyPlay: "play", keySwitch: "switch", keySeek: "one second", keyLoop: "loop", keyMark: "bad moment", keyAnswer: "answer",
  keyStrength: "how much", keyNext: "next", keySkip: "skip", keyReport: "report", keyStars: "stars", keyThumb: "like", keyValue: "value",
};

const de = {
  title: "Hörversuch", consentTitle: "Bevor es losgeht", agree: "Ich stimme zu, weiter",
  backgroundTitle: "Über Sie", backgroundLead: "Beides ist freiwillig: Lassen Sie leer, was Sie nicht sagen möchten.",
  yourLanguage: "Muttersprache", yourMusic: "Ihre Erfahrung mit Musik", noAnswer: "Keine Angabe",
  musicNone: "Ich höre selten Musik", musicListener: "Ich höre Musik", musicAmateur: "Ich musiziere zum Vergnügen",
  musicTrained: "Ich hatte jahrelang Unterricht", musicProfessional: "Ich lebe von Musik", next: "Weiter",
  volumeTitle: "Lautstärke einstellen", volumeLead: "Setzen Sie Kopfhörer auf, wenn Sie welche haben. Spielen Sie das Rauschen ab, stellen Sie es angenehm laut, und lassen Sie die Lautstärke bis zum Ende so.",
  playNoise: "Rauschen abspielen", headphonesTitle: "Kopfhörer prüfen",
  headphonesLead: "Sie hören dreimal Rauschen. Einmal ist ein leiser Ton darin, den man nur mit Kopfhörern hört. Welches Mal?",
  playSounds: "Abspielen", skipCheck: "Ich habe keine Kopfhörer", item: "{number} von {of}", practiceItem: "Übung {number} von {of}",
  practice: "Übung", lyrics: "Liedtext", loopStart: "Schleife von", loopEnd: "bis", loopClear: "ohne",
  mark: "Schlechte Stelle", markEnd: "Ende der Stelle", comment: "Kommentar hinzufügen", skip: "Überspringen", report: "Melden",
  reportWhy: "Was stimmt nicht? (verletzend, kaputt, kopiert …)", reportSend: "Melden und weiter",
  seek: "Stelle", play: "Abspielen", pause: "Anhalten", sound: "Lied {name}", referenceShort: "Vorl.", heardAll: "gehört",
  whichBetter: "Was gefällt Ihnen besser?", answer_a: "A", answer_b: "B", answer_tie: "Kein Unterschied", answer_both_bad: "Beide schlecht", short_tie: "Gleich", short_both_bad: "Beide schlecht",
  howMuch: "Wie viel besser?", strength1: "Etwas", strength2: "Deutlich", strength3: "Viel",
  thumbQuestion: "Gefällt es Ihnen?", thumbUp: "Ja", thumbDown: "Nein", starsQuestion: "Wie gut ist es?", stars: "{number} von 5",
  valuesQuestion: "Wie nah ist jedes an der Vorlage?", bad: "schlecht", poor: "mäßig", fair: "ordentlich", good: "gut", excellent: "hervorragend",
  listenFirst: "Bitte hören Sie zuerst jedes Lied {seconds} Sekunden lang.", chooseFirst: "Bitte wählen Sie zuerst eine Antwort.",
  right: "Richtig!", wrong: "Diesmal nicht", thanks: "Gut",
  answerWas_a: "A war das unbeschädigte Lied.", answerWas_b: "B war das unbeschädigte Lied.", answerWas_tie: "Beides war dasselbe Lied.",
  hiddenWas: "Die versteckte Vorlage war {name}; dumpfe Kopien davon waren {anchors}.", practiceOnly: "Das war zur Übung und zählt nicht.",
  breakTitle: "Zeit für eine Pause", breakLead: "Ohren werden müde. Strecken Sie sich, trinken Sie etwas, und kommen Sie wieder.", goOn: "Weiter",
  doneTitle: "Das war alles. Vielen Dank!", doneLead: "Ihre Antworten sind gespeichert. Sie können diese Seite schließen oder unten ansehen, was über Sie gespeichert ist.",
  myData: "Meine Daten", dataTitle: "Meine Daten", dataLead: "Laden Sie herunter, was über Sie gespeichert ist, oder löschen Sie es. Löschen nimmt Ihre Antworten aus dem Versuch und lässt sich nicht rückgängig machen.",
  download: "Herunterladen", delete: "Löschen", deleteConfirm: "Wirklich alles löschen", back: "Zurück",
  deletedTitle: "Alles von Ihnen ist gelöscht.", deletedLead: "Nur eine zufällige Zahl und die Zeit bleiben. Sie können diese Seite schließen.",
  failureTitle: "Etwas ist schiefgegangen", again: "Noch einmal", offline: "Der Server antwortet nicht. Ihre bisherigen Antworten sind gespeichert.",
  keyPlay: "abspielen", keySwitch: "wechseln", keySeek: "eine Sekunde", keyLoop: "Schleife", keyMark: "schlechte Stelle", keyAnswer: "Antwort",
  keyStrength: "wie viel", keyNext: "weiter", keySkip: "überspringen", keyReport: "melden", keyStars: "Sterne", keyThumb: "gefällt", keyValue: "Wert",
};

const languages = { en, de };
let current = en;

export const languageNames = { en: "English", de: "Deutsch" };

export function setLanguage(code) {
  current = languages[code] ?? en;
  document.documentElement.lang = languages[code] ? code : "en";
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  document.title = text("title");
}

export function text(key, values = {}) {
  return (current[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}
