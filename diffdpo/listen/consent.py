"""The consent of listeners: texts by language, and the version that a vote is given under."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from diffdpo.listen.study import ConsentConfig

BUILT_IN: Mapping[str, str] = {
    "en": """\
You will hear short excerpts of songs that were made by computer programs, and say which you prefer. There \
are no right answers. Headphones and a quiet room help.

We store your answers, how long you listened, comments you write, and what you choose to say about yourself, \
under a random name. We do not store your name, your address on the network, or which browser you use. One \
cookie keeps your place in the study.

Your answers may be published and may train programs that make music, under the license {license}.

Taking part is voluntary. You may stop at any time, download what is stored of you, and delete it, on the \
page "My data". What has been published or trained before that cannot be called back.

By continuing you confirm that you are at least 18 years old and agree to this.""",
    "de": """\
Sie hören kurze Ausschnitte aus Liedern, die von Computerprogrammen stammen, und sagen, welche Ihnen besser \
gefallen. Es gibt keine richtigen Antworten. Kopfhörer und ein ruhiger Raum helfen.

Gespeichert werden Ihre Antworten, wie lange Sie gehört haben, Ihre Kommentare und was Sie freiwillig über \
sich angeben, unter einem zufälligen Namen. Weder Ihr Name noch Ihre Netzadresse noch Ihr Browser werden \
gespeichert. Ein Cookie merkt sich, wo Sie im Versuch stehen.

Ihre Antworten können veröffentlicht werden und Programme trainieren, die Musik machen, unter der Lizenz \
{license}.

Die Teilnahme ist freiwillig. Sie können jederzeit aufhören und auf der Seite „Meine Daten“ herunterladen, \
was über Sie gespeichert ist, und es löschen. Was vorher veröffentlicht oder trainiert wurde, lässt sich \
nicht zurückholen.

Mit „Weiter“ bestätigen Sie, dass Sie mindestens 18 Jahre alt sind und zustimmen.""",
}


@dataclass(frozen=True, kw_only=True)
class Consent:
    """What a listener agrees to, in one language."""

    language: str
    text: str

    @property
    def version(self) -> str:
        """Hash of the text; another text is another version."""
        return hashlib.sha256(self.text.encode()).hexdigest()[:16]

    @property
    def key(self) -> str:
        """Version and language, as votes name it."""
        return f"{self.version}/{self.language}"


def consents(cfg: ConsentConfig) -> dict[str, Consent]:
    """The consent of each language: the study's own texts, or the built-in ones."""
    texts = cfg.texts or {
        language: text.replace("{license}", cfg.license) for language, text in BUILT_IN.items()
    }
    return {
        language: Consent(language=language, text=_with_contact(text, cfg.contact))
        for language, text in texts.items()
    }


def _with_contact(text: str, contact: str) -> str:
    return f"{text}\n\n{contact}" if contact else text
