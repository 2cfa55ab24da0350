"""An application that a test kills: it plays episodes forever and prints each action once it has it."""

from __future__ import annotations

import sys

import retroformer

WORDS = [f"w{n}" for n in range(12)]

if __name__ == "__main__":
    agent = retroformer.load_agent(sys.argv[1], record=sys.argv[2])
    while True:
        with agent.episode("w0 w1", task="app:A") as episode, agent.episode("w1 w2", task="app:B") as other:
            for t in range(6):
                for one in (episode, other):
                    action = one.act(f"w{t} w3", WORDS[t : t + 4])
                    print(one.id, t, action, flush=True)
            episode.finish(success=True)
            print(episode.id, "end", "-", flush=True)
